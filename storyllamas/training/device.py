"""What the training runs on: the device, its precision, and the memory allocator's manners."""

from __future__ import annotations

import ctypes
import math
import os
import shlex
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import torch

from storyllamas.errors import UserError
from storyllamas.params import Compute

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# FLOPs of a run that takes some three minutes as it is. Compiling takes up to half of one.
_EARNS_COMPILING = {"cpu": 2e13, "cuda": 4e15}


@dataclass(frozen=True)
class Device:
    """A device and the precision of its matrix products.

    Attributes:
        name: cpu, cuda or mps.
        bfloat16: matrix products are in bfloat16 (mixed precision); weights stay float32.
        threads: CPU threads that torch computes with.
        compiled: the training step is compiled.
    """

    name: str
    bfloat16: bool
    threads: int
    compiled: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the forward pass runs."""
        return torch.autocast(self.name, torch.bfloat16) if self.bfloat16 else nullcontext()

    @property
    def precision(self) -> str:
        """The precision's name in params.yaml."""
        return "bfloat16" if self.bfloat16 else "float32"


def choose(compute: Compute, flops: float = 0.0) -> Device:
    """The device that `compute` names, or the best that there is, made ready for training.

    Args:
        compute: what the user chose.
        flops: of the whole run; decides whether to compile where that is left open.

    Raises:
        UserError: the named device is not there.
    """
    if compute.threads:
        torch.set_num_threads(compute.threads)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available["cpu"] = True
    name: str = compute.device
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f"compute.device is {name!r}: this machine has none, use auto or cpu")
    bfloat16 = compute.precision == "bfloat16"
    if compute.precision == "auto":
        bfloat16 = computes_in_bfloat16(name)
    if name == "cpu":
        _keep_freed_pages()
        _add_in_order()
    return Device(name, bfloat16, torch.get_num_threads(), _is_compiled(compute, name, flops))


def _is_compiled(compute: Compute, name: str, flops: float) -> bool:
    """Whether to compile a run of so many FLOPs; says so if only a C++ compiler is missing."""
    wanted = compute.compile == "always"
    if compute.compile == "auto":
        wanted = flops >= _EARNS_COMPILING.get(name, math.inf)
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if wanted and name == "cpu" and not shutil.which(shlex.split(compiler)[0]):
        print(f"no C++ compiler ({compiler}) is here: training goes on without, slower", flush=True)
        return False
    return wanted


def computes_in_bfloat16(name: str) -> bool:
    """Return whether a device of that name multiplies bfloat16 natively, so that it is faster."""
    if name == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if name == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def _add_in_order() -> None:
    """Have threads add up in the same order in every run, so that the bits are the same.

    A compiled step would add the gradients of the embedding's rows as its threads come.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _keep_freed_pages() -> None:
    """Let glibc reuse the pages of large activations.

    By default it gives them back to the kernel at every step and faults them in again, which costs
    a fifth of the time. Other C libraries are left alone.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
