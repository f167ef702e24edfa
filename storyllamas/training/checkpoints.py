"""The states that a killed run goes on from."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
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
from storyllamas.training.disk import refusal
from storyllamas.workdir import locked

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


MOST_SHARE = 0.02


class Keeper:
    """Keeps the state of a run now and then.

    A disk that takes none is no reason to stop: the run may end well without, or find room later.

    Attributes:
        step: of the newest state that is kept; 0: there is none.
        seconds: what keeping them took.
    """

    def __init__(self, folder: RunFolder, every: float, step: int, seconds: float) -> None:
        """Begin to count.

        Args:
            folder: where states are kept.
            every: seconds between two of them, or more, so that they take no more than
                `MOST_SHARE` of the time; 0: after each step.
            step: of the state that the run goes on from.
            seconds: what keeping states took before.
        """
        self.step, self.seconds = step, seconds
        self._folder, self._every = folder, every
        self._wait = every
        self._since = time.monotonic()
        self._failed = False

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._since >= self._wait

    @property
    def resumption(self) -> str:
        """What the next run does."""
        return f"goes on from step {self.step}" if self.step else "begins anew"

    def keep(self, state: Callable[[], State], last: bool = False) -> None:
        """Keep the state; where that fails, say so once until it works again.

        Args:
            state: makes it.
            last: there will be no other.
        """
        begun = time.monotonic()
        now = state()
        try:
            self._folder.save(now)
        except OSError as error:
            if last or not self._failed:
                self._warn(now, error, last)
            self._failed = True
        else:
            if self._failed:
                print(f"the checkpoint of step {now.step} could be written again", flush=True)
            self.step, self._failed = now.step, False
        self._since = time.monotonic()
        took = self._since - begun
        self.seconds += took
        self._wait = max(self._every, took / MOST_SHARE) if self._every else 0

    def _warn(self, state: State, error: OSError, last: bool) -> None:
        kept = f"that of step {self.step} is kept" if self.step else "there is none yet"
        why = refusal(error, self._folder.path, state.bytes)
        hope = "" if last else "; training goes on and tries again"
        print(f"no checkpoint of step {state.step}, {kept}: {why}{hope}", flush=True)
