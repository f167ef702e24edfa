"""The training loss, as C code if it suits, else compiled by torch.compile."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from storyllamas import workdir
from storyllamas.model import Llama, SoftTargets
from storyllamas.training import fused
from storyllamas.training.device import Device

MAX_CAUSE = 300
"""Characters of the message of a compiler that an error shows."""

Loss = Callable[[Tensor, Tensor | SoftTargets], Tensor]
"""A mean loss in nats a token from tokens and targets [micro_batch, length]."""


class CompilationError(Exception):
    """The training step cannot be compiled on this machine; the message is the cause."""


def training_loss(
    model: Llama,
    device: Device,
    micro_batch: int,
    likely: int = 0,
    lengths: Sequence[int] = (),
) -> Loss:
    """Return the model's loss, compiled if the device says so.

    Args:
        model: on the device.
        device: where to train.
        micro_batch: sequences of the whole context in a forward pass.
        likely: tokens of a soft target; 0: targets are single tokens.
        lengths: tokens of sequences, if there are others than the context. The first is compiled
            now, the others when they come.

    Raises:
        CompilationError: the compilation, or the first call of its result, fails.
        OutOfMemoryError: the GPU's memory is too small for the micro-batch.
    """
    if not device.compiled:
        return model.loss
    if in_c := loss_in_c(model, device, lengths):
        return in_c
    print("compiling the training step", flush=True)
    if device.name == "cpu":
        _check_compiler()
    # With the strides of a batch's windows: PyTorch compiles again for another memory layout.
    context = model.config.context
    length = lengths[0] if lengths else context
    windows = np.zeros((micro_batch * context // length, length + 1), np.int64)
    tokens, single = (
        torch.from_numpy(part).to(device.name) for part in (windows[:, :-1], windows[:, 1:])
    )
    targets: Tensor | SoftTargets = single
    if likely:
        ids = torch.zeros(*tokens.shape, likely, dtype=torch.int64, device=device.name)
        targets = SoftTargets(ids, torch.full(ids.shape, 1 / likely, device=device.name))
    model.train()
    # Not only what PyTorch documents: a broken toolchain raises OSError, ImportError and others.
    try:
        _set_paths()
        compiled: Loss = torch.compile(model.loss, dynamic=False)
        with device.autocast():
            loss = compiled(tokens, targets)
        loss.backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise CompilationError(_cause(error)) from None
    model.zero_grad(set_to_none=True)
    return compiled


def loss_in_c(
    model: Llama, device: Device, lengths: Collection[int] = ()
) -> fused.FusedLoss | None:
    """Return the model's loss in C; None if it does not suit or cannot be built.

    Args:
        model: on the device.
        device: where to train.
        lengths: tokens of sequences, if there are others than the context.
    """
    if not fused.suits(model, device, lengths):
        return None
    try:
        return fused.FusedLoss(model, device.bfloat16, build_folder())
    except OSError as error:
        print(f"the training step is not in C ({error})", file=sys.stderr, flush=True)
        return None


def _check_compiler() -> None:
    """Check that the C++ compiler exists; PyTorch takes `CXX` as the name of one program."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    compiler = os.environ.get("CXX", default)
    if not compiler:
        raise CompilationError(f"the variable CXX is empty: unset it to use {default}")
    if not shutil.which(compiler):
        raise CompilationError(f"the C++ compiler {compiler} is not installed")


def _set_paths() -> None:
    """Let PyTorch keep compiled code for later runs, and build in paths that a shell would split.

    PyTorch does not quote its build folder and its library folder in the compiler's command line.
    If the build folder would need quotes, leave PyTorch's default, a temporary folder. If the
    library folder would, give PyTorch a symbolic link to it whose path needs none.
    """
    folder = build_folder()
    if not _needs_quotes(folder):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch.utils import cpp_extension

    libraries = cpp_extension.TORCH_LIB_PATH
    if _needs_quotes(libraries):
        digest = sha256(os.fsencode(libraries)).hexdigest()[:16]
        link = Path(cache_dir()) / f"torch-lib-{digest}"
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(libraries)
        cpp_extension.TORCH_LIB_PATH = str(link)


def build_folder() -> Path:
    """Return the folder of compiled code, which later runs of the same shape use again."""
    return workdir.project() / "compiled"


def _needs_quotes(path: str | Path) -> bool:
    try:
        return shlex.split(str(path)) != [str(path)]
    except ValueError:
        return True


def _cause(error: BaseException) -> str:
    """Return the innermost cause of an error of torch.compile, in one line."""
    while True:
        inner = getattr(error, "inner_exception", None) or error.__cause__
        if inner is None or hasattr(error, "output"):
            break
        error = inner
    # Errors of PyTorch's C++ build have the output of the compiler.
    lines = str(getattr(error, "output", error)).strip().splitlines()
    line = next((line for line in lines if "error" in line), next(iter(lines), repr(error)))
    return " ".join(line.split())[:MAX_CAUSE]
