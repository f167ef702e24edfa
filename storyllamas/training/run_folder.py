"""The states that a killed run goes on from."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from storyllamas.atomic import atomic_path, clear_leftovers
from storyllamas.errors import UserError
from storyllamas.state import locked

KEPT = 2


@dataclass(frozen=True)
class State:
    """A run after a step.

    Attributes:
        step: steps done.
        tensors: weights, optimizer state and the best weights, under names of the loop's choice.
        notes: what else the loop needs to go on; plain values.
    """

    step: int
    tensors: dict[str, Tensor]
    notes: dict[str, Any]

    @property
    def bytes(self) -> int:
        """About the size of its file."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class RunFolder:
    """The states of one unfinished run, the last `KEPT`, in STEP.safetensors each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; one that was killed lets go by itself.

        Raises:
            UserError: nothing can be written there.
        """
        with ExitStack() as stack:
            try:
                lock = locked(self.path / "lock", "the process that trains this run")
                stack.enter_context(lock)
            except OSError as error:
                raise UserError(
                    f"checkpoints cannot be kept in {self.path} ({error.strerror}): make it "
                    "writable, or name another folder in STORYLLAMAS_STATE"
                ) from None
            clear_leftovers(self.path)
            yield

    def save(self, state: State) -> None:
        """Add a state, then remove those beyond `KEPT`.

        Raises:
            OSError: it cannot be written; the states before it stay.
        """
        notes = json.dumps(state.notes)
        checksum = _checksum(state.step, notes, state.tensors)
        metadata = {"step": str(state.step), "notes": notes, "crc32": checksum}
        with atomic_path(self._file(state.step)) as temporary, _os_errors():
            safetensors.torch.save_file(state.tensors, temporary, metadata)
        # Files of later steps are those that `latest` could not read.
        before = [file for file in self._files() if int(file.stem) < state.step]
        for old in before[: -(KEPT - 1)]:
            with suppress(OSError):
                old.unlink()

    def latest(self) -> State | None:
        """The newest state that is whole, or None; says which are not, and removes damaged ones."""
        files = self._files()
        for file in reversed(files):
            try:
                return _read(file)
            except OSError as error:
                trouble = f"cannot be read ({error.strerror})"
            except (SafetensorError, ValueError, KeyError, TypeError):
                trouble = "is damaged"
                with suppress(OSError):
                    file.unlink()
            other = "starting anew" if file == files[0] else "going back to the one before it"
            print(f"{file} {trouble}: {other}", flush=True)
        return None

    def remove(self) -> None:
        """Forget the run: it is finished."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, step: int) -> Path:
        return self.path / f"{step:09d}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("[0-9]*.safetensors"))


def _read(file: Path) -> State:
    """Read rather than mapped, so that a bad block of the disk is an `OSError`."""
    data = file.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + header_bytes])["__metadata__"]
    state = State(int(file.stem), safetensors.torch.load(data), json.loads(metadata["notes"]))
    if metadata["crc32"] != _checksum(state.step, metadata["notes"], state.tensors):
        raise ValueError("other content than was written")
    return state


def _checksum(step: int, notes: str, tensors: dict[str, Tensor]) -> str:
    """CRC-32 of all that a state's file holds, and of the step in its name."""
    crc = zlib.crc32(f"{step} {notes}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


@contextmanager
def _os_errors() -> Iterator[None]:
    """Errors of the system as Python has them: safetensors puts their number into its message."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number)) from None
