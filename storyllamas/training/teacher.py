"""Distillation: learn the probabilities that trained models give to each next token of the text.

Hinton et al. 2015, arXiv:1503.02531. The teachers' probabilities of the most likely tokens are
computed once, before the first step, and kept in a file that all runs with the same teachers and
the same tokens share.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from storyllamas import workdir
from storyllamas.adapter import weights_sha256
from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.model import Llama, SoftTargets
from storyllamas.record_rows import IGNORED
from storyllamas.token_file import Ids, TokenFile
from storyllamas.training.compiled import loss_in_c
from storyllamas.training.device import Device
from storyllamas.training.disk import describe_refusal
from storyllamas.training.fused import GROUP_TOKENS
from storyllamas.training.interrupt import Interrupt

TOP = 32
"""Tokens whose probabilities are kept; the next token of the text gets the rest."""

Reader = Callable[[Tensor], Tensor]
"""From tokens [sequences, T] to logits [sequences, T, V] in float32."""

RECORD = np.dtype([("ids", "<u2", (TOP,)), ("probabilities", "<f2", (TOP,))])
"""What the file has for each token: the likely tokens after it."""

BLOCK_TOKENS = 1 << 16
"""Tokens, at least, whose probabilities are written at once."""


@dataclass(frozen=True)
class TrainedModel:
    """A model to learn from.

    Attributes:
        config: its shape.
        tensors: every tensor of `config.tensor_shapes`, float32, on the CPU.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]

    @cached_property
    def digest(self) -> str:
        """A digest of the model, as hexadecimal digits."""
        weights = weights_sha256(
            (name, self.tensors[name].numpy()) for name in sorted(self.tensors)
        )
        return sha256(f"{asdict(self.config)} {weights}".encode()).hexdigest()

    def on(self, device: Device) -> Llama:
        """Return the model on a device, without dropout."""
        model = Llama(self.config)
        model.load_state_dict(dict(self.tensors))
        return model.to(device.name).eval()


@dataclass(frozen=True)
class Teacher:
    """The models to learn from.

    Attributes:
        models: at least one; the mean of their probabilities counts.
        share: the share of their probabilities in the targets, above 0 … 1; the next token of the
            text has the rest.
    """

    models: Sequence[TrainedModel]
    share: float

    def key(self) -> dict[str, Any]:
        """Return JSON values that two teachers share only if they are the same."""
        return {"models": self.digests(), "share": self.share}

    def digests(self) -> list[str]:
        """Return the digest of each model."""
        return [model.digest for model in self.models]

    def probabilities(self, of: TokenFile, device: Device) -> Probabilities:
        """Return the probabilities of the token after each token of a file.

        They are computed unless the file of an earlier run has them. A computation that was killed
        continues where it stopped.

        Raises:
            UserError: the disk refuses the file.
        """
        where = [device.name, device.precision, device.compiled, torch.__version__]
        about = [self.digests(), TOP, *where]
        digest = sha256(json.dumps(about).encode())
        digest.update(of.tokens.view(np.uint8).data)
        path = workdir.project() / "teachers" / f"{digest.hexdigest()[:16]}.bin"
        with workdir.locked(path.with_suffix(".lock"), "another run with these teachers"):
            if not path.exists():
                self._write(path, of, device)
        return Probabilities(np.memmap(path, RECORD, "r"), self.share)

    def _write(self, path: Path, of: TokenFile, device: Device) -> None:
        part = path.with_suffix(".part")
        contexts = [model.config.context for model in self.models]
        batch = max(1, GROUP_TOKENS // max(contexts))
        readers = [_reader(model.on(device), device) for model in self.models]
        interrupt, count, shown = Interrupt(os.getppid()), len(of.tokens), 0
        needed = count * RECORD.itemsize
        with _refusal_named(path.parent, needed):
            file = part.open("ab")
        with file:
            done = file.tell() // RECORD.itemsize
            for block in blocks(of.beginnings(), count, min(contexts)):
                if block[-1].end <= done:
                    continue
                interrupt.check_parent()
                records = _most_likely(readers, of.tokens, block, batch)
                with _refusal_named(path.parent, needed):
                    file.truncate(block[0].first * RECORD.itemsize)
                    file.write(records.tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                tenths = 10 * block[-1].end // count
                if tenths > shown:
                    print(f"the teacher has read {10 * tenths} % of the text", flush=True)
                    shown = tenths
        with _refusal_named(path.parent, needed):
            part.rename(path)


@contextmanager
def _refusal_named(folder: Path, needed: int) -> Iterator[None]:
    """Turn an error of the disk in the body, which writes to `folder`, into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            "the probabilities of train.teacher cannot be kept: "
            f"{describe_refusal(error, folder, needed)} or train without a teacher"
        ) from None


@dataclass(frozen=True)
class Probabilities:
    """The probabilities of the token after each token of a file.

    Attributes:
        records: one of each token, mapped.
        share: see `Teacher`.
    """

    records: npt.NDArray[np.void]
    share: float

    def soften(self, targets: Ids, starts: Ids) -> SoftTargets:
        """Return the soft targets of windows.

        Args:
            targets: their next tokens [windows, context].
            starts: where they begin in the file [windows].
        """
        places = starts[:, None] + np.arange(targets.shape[1])
        found = self.records[np.minimum(places, len(self.records) - 1)]
        shares = found["probabilities"].astype(np.float32) * self.share  # [windows, context, TOP]
        rest = 1 - shares.sum(-1, keepdims=True)
        shares = np.concatenate([shares, rest], -1) * (targets != IGNORED)[..., None]
        ids = np.concatenate([found["ids"].astype(np.int64), np.maximum(targets, 0)[..., None]], -1)
        return SoftTargets(torch.from_numpy(ids), torch.from_numpy(shares))


@dataclass(frozen=True)
class Window:
    """A part of a story that a teacher reads at once.

    Attributes:
        start: its first token in the file.
        first: the first token after which its probabilities count.
        end: the token behind its last.
    """

    start: int
    first: int
    end: int


def blocks(beginnings: Ids, count: int, context: int) -> Iterator[list[Window]]:
    """Yield windows, in order, that read each story from its beginning.

    What does not fit into the context is read in further windows, each of which begins half a
    context earlier than what it adds.

    Args:
        beginnings: where the stories begin.
        count: tokens of the file.
        context: of the teachers.
    """
    block: list[Window] = []
    for start, end in zip(beginnings, [*beginnings[1:], count], strict=True):
        if block and block[-1].end - block[0].first >= BLOCK_TOKENS:
            yield block
            block = []
        block.append(Window(int(start), int(start), int(min(end, start + context))))
        while (last := block[-1].end) < end:
            stop = min(end, last + (context + 1) // 2)
            block.append(Window(int(stop - context), last, int(stop)))
    yield block


def _reader(model: Llama, device: Device) -> Reader:
    """Return a function from tokens to logits, in C if the model suits.

    In C, whole contexts of the tokens must be at most `GROUP_TOKENS`.
    """
    in_c = loss_in_c(model, device) if device.compiled else None
    context = model.config.context

    def logits(tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if in_c:
            return in_c.logits(F.pad(tokens, (0, context - length)))[:, :length].float()
        with device.autocast():
            result: Tensor = model(tokens.to(device.name)).float()
        return result

    return logits


@torch.inference_mode()
def _most_likely(
    readers: Sequence[Reader],
    tokens: npt.NDArray[np.uint16],
    block: Sequence[Window],
    batch: int,
) -> npt.NDArray[np.void]:
    """Return the records of a block, read in batches of `batch` windows."""
    first = block[0].first
    records = np.zeros(block[-1].end - first, RECORD)
    by_length = sorted(block, key=lambda window: window.end - window.start)
    for i in range(0, len(block), batch):
        windows = by_length[i : i + batch]
        longest = windows[-1].end - windows[-1].start
        inputs = np.zeros((len(windows), longest), np.int64)
        for row, window in zip(inputs, windows, strict=True):
            row[: window.end - window.start] = tokens[window.start : window.end]
        read = [logits(torch.from_numpy(inputs)).softmax(-1) for logits in readers]
        mean = torch.stack(read).mean(0)
        top = mean.topk(min(TOP, mean.shape[-1]))
        for window, probabilities, ids in zip(windows, top.values, top.indices, strict=True):
            kept = slice(window.first - window.start, window.end - window.start)
            into = records[window.first - first : window.end - first]
            into["ids"][:, : ids.shape[1]] = ids[kept].cpu().numpy()
            into["probabilities"][:, : ids.shape[1]] = probabilities[kept].cpu().numpy()
    return records
