"""Distillation: learn the probabilities that trained models give to each next token of the text.

Hinton et al. 2015, arXiv:1503.02531. The teachers' probabilities of the most likely tokens are
computed once, before the first step, and kept in a file that all runs with the same teachers and
the same tokens share.

A model knows the text that it learned from better than new text. So a teacher that held out a fold
of this text teaches that fold only, and other teachers the others (cross-fitting).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, reduce
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
from storyllamas.fold import Fold
from storyllamas.model import Llama, SoftTargets
from storyllamas.record_rows import IGNORED
from storyllamas.token_file import Ids, TokenFile
from storyllamas.training.compiled import loss_in_c
from storyllamas.training.device import Device
from storyllamas.training.disk import describe_refusal
from storyllamas.training.fused import BLOCK, GROUP_TOKENS
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
class HeldOut:
    """What a model did not learn from.

    Attributes:
        fold: of the text that it learned from.
        text: the SHA-256 of all tokens of that text, as hexadecimal digits.
    """

    fold: Fold
    text: str

    @classmethod
    def read(cls, about: Mapping[str, str]) -> HeldOut:
        """Return what config.json says.

        Raises:
            ValueError, TypeError or KeyError: that is damaged.
        """
        return cls(Fold.parse(about["fold"]), str(about["tokens_sha256"]))

    def about(self) -> dict[str, str]:
        """Return the values of config.json."""
        return {"fold": str(self.fold), "tokens_sha256": self.text}

    def tokens(self, of: TokenFile) -> tuple[int, int]:
        """Return the first token of a file that it did not learn from, and behind the last.

        Raises:
            UserError: the file has another text, whose stories it may have read.
        """
        if of.tokens_sha256 != self.text:
            raise UserError(
                f"a model of train.teacher held out {self.fold} of another training text than "
                f"{of.path}: use the seed, corpus and tokenizer that it was trained with"
            )
        return self.fold.tokens(of.beginnings(), len(of.tokens))


@dataclass(frozen=True)
class TrainedModel:
    """A model to learn from.

    Attributes:
        config: its shape.
        tensors: every tensor of `config.tensor_shapes`, float32, on the CPU.
        held_out: the fold that it teaches; None: it teaches every text.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    held_out: HeldOut | None = None

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
        models: at least one; the mean of the probabilities counts of those that teach a token.
        share: the share of their probabilities in the targets, above 0 … 1; the next token of the
            text has the rest.
    """

    models: Sequence[TrainedModel]
    share: float

    def key(self) -> dict[str, Any]:
        """Return JSON values that two teachers share only if they are the same."""
        return {"models": self.digests(), "held_out": self._held_out(), "share": self.share}

    def digests(self) -> list[str]:
        """Return the digest of each model."""
        return [model.digest for model in self.models]

    def _held_out(self) -> list[dict[str, str] | None]:
        held_out = [model.held_out for model in self.models]
        return [one.about() if one else None for one in held_out]

    def taught(self, of: TokenFile) -> list[tuple[int, int]]:
        """Return the tokens of a file that each model teaches: the first, and behind the last.

        Raises:
            UserError: no model teaches some of the tokens, or one held out a part of another text.
        """
        held_out, count = [model.held_out for model in self.models], len(of.tokens)
        taught = [one.tokens(of) if one else (0, count) for one in held_out]
        covered = 0
        for first, end in sorted(taught):
            if first > covered:
                break
            covered = max(covered, end)
        if covered < count:
            folds = ", ".join(str(one.fold) for one in held_out if one)
            raise UserError(
                f"the models of train.teacher held out {folds} of the text: add those that held "
                "out the other folds, so that each story has a teacher that has not read it"
            )
        return taught

    def probabilities(self, of: TokenFile, device: Device) -> Probabilities:
        """Return the probabilities of the token after each token of a file.

        They are computed unless the file of an earlier run has them. A computation that was killed
        continues where it stopped.

        Raises:
            UserError: the disk refuses the file.
        """
        where = [device.name, device.precision, device.compiled, torch.__version__]
        about = [self.digests(), self._held_out(), of.tokens_sha256, TOP, *where]
        digest = sha256(json.dumps(about).encode())
        path = workdir.project() / "teachers" / f"{digest.hexdigest()[:16]}.bin"
        with workdir.locked(path.with_suffix(".lock"), "another run with these teachers"):
            if not path.exists():
                self._write(path, of, device)
        return Probabilities(np.memmap(path, RECORD, "r"), self.share)

    def _write(self, path: Path, of: TokenFile, device: Device) -> None:
        part = path.with_suffix(".part")
        contexts = [model.config.context for model in self.models]
        batch = max(1, GROUP_TOKENS // max(contexts))
        interrupt, count, shown = Interrupt(os.getppid()), len(of.tokens), 0
        taught = self.taught(of)
        readers: dict[int, Reader] = {}
        cuts = {edge for edges in taught for edge in edges}
        if cuts != {0, count}:
            print("teachers that held out a fold of the text read only that fold", flush=True)
        needed = count * RECORD.itemsize
        who = "the teacher has" if len(self.models) == 1 else "the teachers have"
        with _refusal_named(path.parent, needed):
            file = part.open("ab")
        with file:
            done = file.tell() // RECORD.itemsize
            for block in blocks(of.beginnings(), count, min(contexts), cuts):
                if block[-1].end <= done:
                    continue
                interrupt.check_parent()
                first = block[0].first
                teaching = [i for i, edges in enumerate(taught) if edges[0] <= first < edges[1]]
                # Each has its own memory, so only those of this fold are kept.
                readers = {
                    i: readers.get(i) or _reader(self.models[i].on(device), device)
                    for i in teaching
                }
                records = _most_likely(list(readers.values()), of.tokens, block, batch)
                with _refusal_named(path.parent, needed):
                    file.truncate(block[0].first * RECORD.itemsize)
                    file.write(records.tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                tenths = 10 * block[-1].end // count
                if tenths > shown:
                    print(f"{who} read {10 * tenths} % of the text", flush=True)
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
            "the probabilities of the teachers cannot be kept: "
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

    def soften(self, targets: Ids, places: Ids) -> SoftTargets:
        """Return the soft targets of windows.

        Args:
            targets: their next tokens [windows, context].
            places: where the tokens before them stand in the file [windows, context].
        """
        found = self.records[places]
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


def blocks(
    beginnings: Ids, count: int, context: int, cuts: Collection[int] = ()
) -> Iterator[list[Window]]:
    """Yield windows, in order, that read each story from its beginning.

    What does not fit into the context is read in further windows, each of which begins half a
    context earlier than what it adds.

    Args:
        beginnings: where the stories begin.
        count: tokens of the file.
        context: of the teachers.
        cuts: beginnings at which a block begins.
    """
    block: list[Window] = []
    for start, end in zip(beginnings, [*beginnings[1:], count], strict=True):
        if block and (start in cuts or block[-1].end - block[0].first >= BLOCK_TOKENS):
            yield block
            block = []
        block.append(Window(int(start), int(start), int(min(end, start + context))))
        while (last := block[-1].end) < end:
            stop = min(end, last + (context + 1) // 2)
            block.append(Window(int(stop - context), last, int(stop)))
    yield block


def _reader(model: Llama, device: Device) -> Reader:
    """Return a function from tokens to logits, in C if the model suits.

    In C, whole contexts of the tokens must be at most `GROUP_TOKENS`. The next call may overwrite
    the logits.
    """
    in_c = loss_in_c(model, device) if device.compiled else None

    def logits(tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if in_c:
            return in_c.logits(F.pad(tokens, (0, -length % BLOCK)))[:, :length].float()
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
        read = (logits(torch.from_numpy(inputs)).softmax(-1) for logits in readers)
        mean = reduce(torch.add, read) / len(readers)
        top = mean.topk(min(TOP, mean.shape[-1]))
        likely = top.values.cpu().numpy(), top.indices.cpu().numpy()
        for window, probabilities, ids in zip(windows, *likely, strict=True):
            kept = slice(window.first - window.start, window.end - window.start)
            into = records[window.first - first : window.end - first]
            into["ids"][:, : ids.shape[1]] = ids[kept]
            into["probabilities"][:, : ids.shape[1]] = probabilities[kept]
    return records
