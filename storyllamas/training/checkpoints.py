"""Checkpoints: the files from which a run that was killed resumes."""

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

from storyllamas import workdir
from storyllamas.atomic import atomic_path, clear_leftovers
from storyllamas.errors import UserError
from storyllamas.training.disk import describe_refusal

MAX_CHECKPOINTS = 2
"""Checkpoints of a run on the disk: the newest, and the one before it in case that is damaged."""

MAX_TIME_SHARE = 0.02
"""Largest share of the time of a run that writing checkpoints takes."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step.

    Attributes:
        step: steps done.
        tensors: weights, optimizer state and best weights, by names that the loop chooses.
        metadata: what else the loop needs to resume; JSON values.
    """

    step: int
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Size of the tensors, which is about the size of the file."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class CheckpointFolder:
    """The newest `MAX_CHECKPOINTS` checkpoints of one run, each in STEP.safetensors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out while the body runs; the lock of a killed process is free.

        The run counts as unfinished again.

        Raises:
            UserError: the folder cannot be written to.
        """
        with ExitStack() as stack:
            try:
                lock = workdir.locked(self.path / "lock", "the process that trains this run")
                stack.enter_context(lock)
            except OSError as error:
                raise UserError(
                    f"checkpoints cannot be saved in {self.path} ({error.strerror}): make it "
                    "writable, or name another folder in STORYLLAMAS_STATE"
                ) from None
            clear_leftovers(self.path)
            (self.path / workdir.FINISHED).unlink(missing_ok=True)
            yield

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove the oldest beyond `MAX_CHECKPOINTS`.

        Raises:
            OSError: it cannot be written; earlier checkpoints stay.
        """
        metadata = json.dumps(checkpoint.metadata)
        checksum = _checksum(checkpoint.step, metadata, checkpoint.tensors)
        header = {"metadata": metadata, "crc32": checksum}
        with atomic_path(self._file(checkpoint.step)) as temporary, _os_errors():
            safetensors.torch.save_file(checkpoint.tensors, temporary, header)
        # Files of later steps are those that `latest` could not read.
        earlier = [file for file in self._files() if int(file.stem) < checkpoint.step]
        for old in earlier[: -(MAX_CHECKPOINTS - 1)]:
            with suppress(OSError):
                old.unlink()

    def latest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None.

        Name each one that cannot be read on standard output, and remove those that are damaged.
        """
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
            fallback = "start from the beginning" if file == files[0] else "use the one before it"
            print(f"{file} {trouble}: {fallback}", flush=True)
        return None

    def mark_finished(self) -> None:
        """Mark the run as finished: its checkpoints may be removed."""
        with suppress(OSError):
            (self.path / workdir.FINISHED).touch()

    def remove(self) -> None:
        """Remove the folder and all checkpoints in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, step: int) -> Path:
        return self.path / f"{step:09d}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("[0-9]*.safetensors"))


class CheckpointSaver:
    """Saves checkpoints of a run at intervals.

    A disk that refuses a checkpoint does not stop the run: it may finish without one, or save one
    later.

    Attributes:
        step: step of the newest checkpoint; 0: there is none.
        seconds: time that writing checkpoints took, earlier processes included.
    """

    def __init__(
        self, folder: CheckpointFolder, interval: float, step: int, seconds: float
    ) -> None:
        """Start the first interval now.

        Args:
            folder: where checkpoints are saved.
            interval: seconds between two checkpoints, 0 …; longer where they would otherwise take
                more than `MAX_TIME_SHARE` of the time; 0: save after each step.
            step: step from which the run resumes; 0: it starts from the beginning.
            seconds: time that earlier processes of this run spent on checkpoints.
        """
        self.step, self.seconds = step, seconds
        self._folder, self._interval = folder, interval
        self._wait = interval
        self._saved_at = time.monotonic()
        self._failed = False

    def is_due(self) -> bool:
        """Return whether the interval is over."""
        return time.monotonic() - self._saved_at >= self._wait

    @property
    def resumption(self) -> str:
        """How the next run begins, as the end of a sentence."""
        return f"resumes from step {self.step}" if self.step else "starts from the beginning"

    def save(self, make: Callable[[], Checkpoint], last: bool = False) -> None:
        """Save a checkpoint; print a line when the disk refuses it, and when it accepts one again.

        Args:
            make: return the checkpoint.
            last: whether no later checkpoint of this process follows.
        """
        started = time.monotonic()
        checkpoint = make()
        try:
            self._folder.save(checkpoint)
        except OSError as error:
            if last or not self._failed:
                self._warn(checkpoint, error, last)
            self._failed = True
        else:
            if self._failed:
                print(f"saved the checkpoint of step {checkpoint.step} again", flush=True)
            self.step, self._failed = checkpoint.step, False
        self._saved_at = time.monotonic()
        took = self._saved_at - started
        self.seconds += took
        self._wait = max(self._interval, took / MAX_TIME_SHARE) if self._interval else 0

    def _warn(self, checkpoint: Checkpoint, error: OSError, last: bool) -> None:
        newest = f"the newest is of step {self.step}" if self.step else "there is none yet"
        reason = describe_refusal(error, self._folder.path, checkpoint.bytes)
        retry = "" if last else "; training continues and tries again"
        print(f"no checkpoint of step {checkpoint.step}, {newest}: {reason}{retry}", flush=True)


def _read(file: Path) -> Checkpoint:
    """Read a checkpoint whole, not mapped, so that a bad block of the disk is an `OSError`."""
    data = file.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])["__metadata__"]
    checkpoint = Checkpoint(
        int(file.stem), safetensors.torch.load(data), json.loads(header["metadata"])
    )
    if header["crc32"] != _checksum(checkpoint.step, header["metadata"], checkpoint.tensors):
        raise ValueError("the checksum does not match")
    return checkpoint


def _checksum(step: int, metadata: str, tensors: dict[str, Tensor]) -> str:
    """Return the CRC-32 of the step, the metadata and every tensor, as 8 hexadecimal digits."""
    crc = zlib.crc32(f"{step} {metadata}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise safetensors' errors of the system as `OSError`, by the number in their message."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number)) from None
