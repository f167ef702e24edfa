"""The device of a training run, its precision, and settings of PyTorch and the allocator."""

from __future__ import annotations

import ctypes
import math
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import torch

from storyllamas.cpuinfo import field
from storyllamas.errors import UserError
from storyllamas.params import Compute

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# FLOPs of a run that takes about three minutes uncompiled. Compiling takes up to half a minute.
_MIN_FLOPS_TO_COMPILE = {"cpu": 2e13, "cuda": 4e15}


@dataclass(frozen=True)
class Device:
    """A device and the precision of its matrix products.

    Attributes:
        name: cpu, cuda or mps.
        bfloat16: whether matrix products are in bfloat16 (mixed precision); weights are float32.
        threads: CPU threads of PyTorch.
        compiled: whether the training step is compiled.
        must_compile: whether a compilation that fails is an error.
    """

    name: str
    bfloat16: bool
    threads: int
    compiled: bool = False
    must_compile: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which to run the forward pass."""
        return torch.autocast(self.name, torch.bfloat16) if self.bfloat16 else nullcontext()

    @property
    def precision(self) -> str:
        """Name of the precision in params.yaml."""
        return "bfloat16" if self.bfloat16 else "float32"


def choose(compute: Compute, flops: float = 0.0) -> Device:
    """Return the device that `compute` names, or the fastest available, and set up PyTorch for it.

    Args:
        compute: section `compute` of params.yaml.
        flops: operations of the whole run, by which `compile: auto` decides.

    Raises:
        UserError: the machine has no such device.
    """
    if compute.threads:
        torch.set_num_threads(compute.threads)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available["cpu"] = True
    name: str = compute.device
    if name == "auto":
        name = next(kind for kind, found in available.items() if found)
    if not available[name]:
        raise UserError(
            f"compute.device is {name!r}, which this machine does not have: use auto or cpu"
        )
    bfloat16 = compute.precision == "bfloat16"
    if compute.precision == "auto":
        bfloat16 = computes_in_bfloat16(name)
    if name == "cpu":
        _reuse_freed_pages()
        _use_deterministic_algorithms()
    must_compile = compute.compile == "always"
    compiled = is_compiled(compute, name, flops)
    return Device(name, bfloat16, torch.get_num_threads(), compiled, must_compile)


def is_compiled(compute: Compute, name: str, flops: float) -> bool:
    """Return whether a run of so many FLOPs is compiled: `auto` compiles long ones, where it pays.

    Args:
        compute: section `compute` of params.yaml.
        name: cpu, cuda or mps.
        flops: operations of the whole run.
    """
    is_long = flops >= _MIN_FLOPS_TO_COMPILE.get(name, math.inf)
    return compute.compile == "always" or (compute.compile == "auto" and is_long)


def computes_in_bfloat16(name: str) -> bool:
    """Return whether a device (cpu, cuda or mps) multiplies bfloat16 faster than float32.

    AMX and AMD's AVX-512 do. Intel's AVX-512 multiplies it at half the speed of float32.
    """
    if name == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if name == "cpu":
        has_avx512_bf16 = torch.cpu._is_avx512_bf16_supported()
        is_intel = field("vendor_id") == "GenuineIntel"
        return bool(torch.cpu._is_amx_tile_supported() or (has_avx512_bf16 and not is_intel))
    return False


def _use_deterministic_algorithms() -> None:
    """Make threads add in the same order in every run, so that runs are bit-identical.

    Otherwise the threads of a compiled step add gradients of the embedding's rows in any order.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _reuse_freed_pages() -> None:
    """Let glibc reuse the pages of large activations.

    By default it returns them to the kernel at every step and faults them in again, which takes a
    fifth of the time. Do nothing with other C libraries.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
