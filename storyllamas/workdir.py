"""Where work in progress is kept, outside DVC's outputs, which DVC deletes before a stage runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def root() -> Path:
    """The folder `$STORYLLAMAS_STATE`, or `.storyllamas` in the working directory."""
    return Path(os.environ.get("STORYLLAMAS_STATE") or ".storyllamas")


@contextmanager
def locked(path: Path, holder: str) -> Iterator[None]:
    """Keep other processes out while the body runs; one that was killed lets go by itself.

    Args:
        path: the lock file, made with its folder where there is none. Who holds the lock may
            remove both.
        holder: who is waited for, as a phrase to print.
    """
    with _open_locked(path, holder):
        yield


def _open_locked(path: Path, holder: str) -> IO[str]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            file = path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for {holder} ({path})", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            # Who held it may have removed the folder: then again.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
