"""The training loss and its gradients in C, for x86-64 processors.

fused.c computes what `Llama.loss` does: in bfloat16 autocast, with float32 sums in more places, on
processors with AVX-512 BF16; or in float32 on those with AVX2. It handles the models of
params.yaml: tied, without grouped-query attention, all weights trained, and sizes that are
multiples of 32. The C compiler builds it for the processor in use, once.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from ctypes import POINTER, c_double, c_float, c_int64, c_uint32, c_void_p
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storyllamas.atomic import atomic_file
from storyllamas.config import tensor_shapes
from storyllamas.cpuinfo import field
from storyllamas.model import Llama, SoftTargets
from storyllamas.record_rows import IGNORED
from storyllamas.training.device import Device

SOURCE = Path(__file__).with_name("fused.c")
SOURCES = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared")
BLOCK = 32
"""Every size is a multiple of it."""
GROUP_TOKENS = 2048
"""Tokens that fused.c computes at a time."""
MAX_LAYERS = 64
MAX_CONTEXT = 2048
"""Tokens of the longest sequence; each thread keeps the square of it twice."""


class _Shape(ctypes.Structure):
    """The struct `shape` of fused.c."""

    _fields_ = (
        *((name, c_int64) for name in ("dim", "layers", "heads", "head_dim", "hidden")),
        *((name, c_int64) for name in ("context", "vocab", "ignored")),
        *((name, c_float) for name in ("norm_eps", "dropout")),
    )


class _Targets(ctypes.Structure):
    """The struct `targets` of fused.c."""

    _fields_ = (("ids", c_void_p), ("shares", c_void_p), ("each", c_int64))


def suits(model: Llama, device: Device, lengths: Collection[int] = ()) -> bool:
    """Return whether fused.c computes the loss of this model on this device.

    Args:
        model: the model.
        device: where to train.
        lengths: tokens of sequences, if there are others than the context.
    """
    return (
        device.name == "cpu"
        and sys.platform == "linux"
        and platform.machine() == "x86_64"
        and (torch.cpu._is_avx512_bf16_supported() if device.bfloat16 else has_avx2())
        and _fits(model)
        and all(length % BLOCK == 0 for length in lengths)
    )


def has_avx2() -> bool:
    """Return whether the processor has AVX2, or AVX-512, and fused multiply-add."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _fits(model: Llama) -> bool:
    config = model.config
    sizes = (config.dim, config.hidden, config.head_dim, config.context, config.vocab_size)
    return (
        config.tied
        and config.kv_heads == config.heads
        and all(size % BLOCK == 0 for size in sizes)
        and config.context <= MAX_CONTEXT
        and config.layers <= MAX_LAYERS
        and [name for name, p in model.named_parameters() if p.requires_grad]
        == list(tensor_shapes(config))
    )


class _MuonSettings(ctypes.Structure):
    """The struct `muon` of fused.c."""

    _fields_ = (
        *((name, c_float) for name in ("momentum", "beta2", "decay", "rate")),
        *((name, c_float) for name in ("linear", "cubic", "quintic")),
        ("steps", c_int64),
    )


class FusedLoss:
    """The mean loss of a model, as a function of tokens and targets [sequences, length].

    A length is a multiple of `BLOCK`, and at most the context.
    """

    def __init__(self, model: Llama, bfloat16: bool, folder: Path) -> None:
        """Build the library, unless it is in `folder`.

        Args:
            model: one that `suits`.
            bfloat16: whether matrices are multiplied in bfloat16, else in float32.
            folder: folder of compiled code.

        Raises:
            OSError: the compiler is missing or fails, or the library cannot be loaded.
        """
        self._model = model
        self._library = _load(folder, bfloat16)
        self._dtype = torch.bfloat16 if bfloat16 else torch.float32
        self._threads = torch.get_num_threads()
        self._parameters = list(model.parameters())
        self._memory = torch.empty(0, dtype=torch.uint8)
        if not self.bytes(1):
            raise OSError("too many threads, or the system does not let the process use AMX")

    def bytes(self, sequences: int, length: int | None = None) -> int:
        """Return the memory that a step keeps; 0: it cannot run.

        Args:
            sequences: their number.
            length: tokens of each; None: the context.
        """
        shape = self._shape(length or self._model.config.context)
        return int(self._library.fused_bytes(shape, sequences, self._threads))

    def __call__(self, tokens: Tensor, targets: Tensor | SoftTargets) -> Tensor:
        """Return the loss, with a backward pass unless gradients are off.

        Args:
            tokens: [sequences, length].
            targets: the next tokens [sequences, length], or their probabilities.
        """
        if torch.is_grad_enabled():
            apply: Callable[..., Tensor] = _Loss.apply
            return apply(self, tokens, targets, *self._parameters)
        return self.compute(tokens, targets, None)

    def compute(
        self,
        tokens: Tensor,
        targets: Tensor | SoftTargets,
        gradients: Sequence[Tensor] | None,
    ) -> Tensor:
        """Return the loss; set `gradients`, one for each parameter, if there are any."""
        if isinstance(targets, Tensor):
            ids, shares, each = targets.contiguous(), None, 1
        else:
            ids, shares = (part.contiguous() for part in targets)
            each = ids.shape[2]
        tokens = tokens.contiguous()
        vocab = self._model.config.vocab_size
        learned = ids if shares is not None else ids.where(ids != IGNORED, 0)
        lowest, highest = min(tokens.min(), learned.min()), max(tokens.max(), learned.max())
        if lowest < 0 or highest >= vocab:
            raise IndexError(f"a token is negative, or not below the vocabulary size, {vocab}")
        size = self.bytes(*tokens.shape)
        if size > len(self._memory):
            self._memory = torch.empty(size, dtype=torch.uint8)
        loss = self._library.fused_loss(
            self._shape(tokens.shape[1]),
            len(tokens),
            self._threads,
            tokens.data_ptr(),
            _Targets(ids.data_ptr(), None if shares is None else shares.data_ptr(), each),
            self._model.rotary.data_ptr(),
            _addresses(self._parameters),
            _addresses(gradients) if gradients else None,
            self._memory.data_ptr(),
            int(torch.randint(1 << 32, ())) if self._dropout() else 0,
        )
        return torch.tensor(loss, dtype=torch.float32)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits [sequences, length, V]; the next call overwrites them.

        They are in bfloat16 or float32, as matrices are multiplied.

        Args:
            tokens: [sequences, length], at most `GROUP_TOKENS` in all.
        """
        if tokens.numel() > GROUP_TOKENS:
            raise ValueError(f"{tokens.numel()} tokens are more than {GROUP_TOKENS}")
        self.compute(tokens, tokens, None)
        at = self._library.fused_logits(
            self._shape(tokens.shape[1]), len(tokens), self._threads, self._memory.data_ptr()
        )
        first = at - self._memory.data_ptr()
        size = tokens.numel() * self._model.config.vocab_size * self._dtype.itemsize
        return self._memory[first : first + size].view(self._dtype).view(*tokens.shape, -1)

    def update(
        self,
        settings: Mapping[str, float],
        weights: Sequence[Tensor],
        means: Sequence[Tensor],
        gradients: Sequence[Tensor],
        row_squares: Sequence[Tensor],
    ) -> None:
        """Change weights of one shape, and their means and squares, as a step of Muon does.

        Args:
            settings: the fields of the struct `muon`.
            weights: matrices of one shape, contiguous as all tensors here.
            means: means of their gradients.
            gradients: their gradients.
            row_squares: mean squares of the rows of updates; none: rows are not normalized.
        """
        rows, columns = weights[0].shape
        each = self._library.fused_muon_scratch(rows, columns)
        threads = min(self._threads, len(weights))
        scratch = torch.empty(threads * each, dtype=self._dtype)
        self._library.fused_muon(
            _MuonSettings(**settings),
            threads,
            len(weights),
            rows,
            columns,
            *map(_addresses, (weights, means, gradients)),
            _addresses(row_squares) if row_squares else None,
            scratch.data_ptr(),
        )
        torch.autograd.graph.increment_version(weights)

    def _dropout(self) -> float:
        return float(self._model.dropout.p) if self._model.training else 0.0

    def _shape(self, length: int) -> _Shape:
        c = self._model.config
        sizes = (c.dim, c.layers, c.heads, c.head_dim, c.hidden, length, c.vocab_size)
        return _Shape(*sizes, IGNORED, c.norm_eps, self._dropout())


class _Loss(torch.autograd.Function):
    """The loss; its forward pass computes the gradients, too."""

    @staticmethod
    def forward(
        ctx: Any, loss: FusedLoss, tokens: Tensor, targets: Tensor | SoftTargets, *of: Tensor
    ) -> Tensor:
        ctx.gradients = [torch.empty_like(parameter) for parameter in of]
        return loss.compute(tokens, targets, ctx.gradients)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        factor = grad_outputs[0].item()
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        return (None, None, None, *gradients)


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


@cache
def _load(folder: Path, bfloat16: bool) -> Any:
    """Return the library, built if it is not in the folder.

    It uses the OpenMP threads of PyTorch, whose library this process has loaded.
    """
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS]
    if not bfloat16:
        command.append("-DFUSED_FLOAT32")
    about = [*(path.read_text(encoding="utf-8") for path in SOURCES), *command, _processor()]
    path = folder / f"fused-{sha256('|'.join(about).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            done = subprocess.run(
                [*command, "-o", file.name, str(SOURCE)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise OSError(done.stderr.strip().splitlines()[0] if done.stderr else command[0])
    library = ctypes.CDLL(str(path))
    library.fused_bytes.restype = c_int64
    library.fused_bytes.argtypes = [POINTER(_Shape), c_int64, c_int64]
    library.fused_loss.restype = c_double
    library.fused_loss.argtypes = [
        *(POINTER(_Shape), c_int64, c_int64, c_void_p, _Targets, c_void_p, c_void_p),
        *(c_void_p, c_void_p, c_uint32),
    ]
    library.fused_logits.restype = c_void_p
    library.fused_logits.argtypes = [POINTER(_Shape), c_int64, c_int64, c_void_p]
    library.fused_muon_scratch.restype = c_int64
    library.fused_muon_scratch.argtypes = [c_int64, c_int64]
    library.fused_muon.restype = None
    library.fused_muon.argtypes = [
        *(POINTER(_MuonSettings), c_int64, c_int64, c_int64, c_int64),
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    ]
    return library


def _processor() -> str:
    """Return what -march=native depends on."""
    return "\n".join(field(key) for key in ("model", "model name", "flags"))
