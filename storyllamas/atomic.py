"""Files and folders that are either whole or not there, whatever kills the process or the power."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield where to write a file that becomes `path` on success.

    It is then on the disk: a power cut finds it there. On any exception an existing `path` is left
    as it was. Parent folders are created; what killed writers of `path` left behind is removed.
    What is no file, such as a pipe or /dev/null, is written to as it is.

    Raises:
        OSError: the system refuses; its `filename` is set, to `path` where a write failed.
    """
    target = Path(path).absolute()
    if target.exists() and not target.is_file():
        yield target
        return
    try:
        with _workplace(target) as folder:
            temporary = folder / target.name
            yield temporary
            _sync(temporary)
            temporary.replace(target)
            _sync(target.parent)
    except OSError as error:
        inside = str(_prefix(target))
        if str(error.filename or inside).startswith(inside):
            error.filename = str(path)
        raise


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing bytes that becomes `path` on success, as `atomic_path` does it."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a temporary folder beside `path`; move its files into the folder `path` on success.

    Other files in `path` stay. On any exception the temporary folder is removed and `path` is left
    as it was. Parent folders are created.
    """
    target = Path(path).absolute()
    with _workplace(target) as temporary:
        yield temporary
        files = sorted(temporary.iterdir())
        for name in files:
            _sync(name)
        target.mkdir(exist_ok=True)
        for name in files:
            name.replace(target / name.name)
        _sync(target)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities are refused (`ValueError`)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def clear_leftovers(folder: Path, prefix: str = ".") -> None:
    """Remove what killed writers left in `folder`, if it begins with `prefix`."""
    for left in folder.glob(f"{glob.escape(prefix)}*.tmp"):
        # Who still writes there holds a lock.
        with suppress(OSError), _opened(left) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, locked until the end of this process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = _prefix(target)
    clear_leftovers(prefix.parent, prefix.name)
    while True:
        with tempfile.TemporaryDirectory(".tmp", prefix.name, prefix.parent) as name:
            folder = Path(name)
            with _opened(folder) as handle:
                with suppress(OSError):  # of a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if folder.exists():  # and not taken for a leftover before it was locked
                    yield folder
                    return


def _prefix(target: Path) -> Path:
    """How the temporary folders of `target` begin."""
    return target.with_name(f".{target.name}.")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    with _opened(path) as handle:
        os.fsync(handle)
