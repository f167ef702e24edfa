"""Atomic writes: a file or folder appears complete or not at all, even if the power fails."""

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
    """Yield a temporary path; the file that you write there becomes `path` on success.

    The file is then on the disk and survives a power failure. On an exception an existing `path`
    stays as it was. Parent folders are created. Temporary files of killed writers of `path` are
    removed. A pipe or a device such as /dev/null is written directly.

    Raises:
        OSError: the system reports an error; its `filename` is `path` if a write failed.
    """
    target = Path(path).absolute()
    if target.exists() and not target.is_file():
        yield target
        return
    try:
        with _temporary_folder(target) as folder:
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
    """Open a binary file that becomes `path` on success; see `atomic_path`."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a temporary folder next to `path`; move its files into the folder `path` on success.

    Other files in `path` stay. On an exception the temporary folder is removed and `path` stays as
    it was. Parent folders are created.
    """
    target = Path(path).absolute()
    with _temporary_folder(target) as temporary:
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
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: a number is not finite.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def clear_leftovers(folder: Path, prefix: str = ".") -> None:
    """Remove temporary folders of killed writers in `folder` whose names begin with `prefix`."""
    for leftover in folder.glob(f"{glob.escape(prefix)}*.tmp"):
        # A live writer holds the lock.
        with suppress(OSError), _opened(leftover) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """Make a temporary folder next to `target` that is locked while this process lives."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = _prefix(target)
    clear_leftovers(prefix.parent, prefix.name)
    while True:
        with tempfile.TemporaryDirectory(".tmp", prefix.name, prefix.parent) as name:
            folder = Path(name)
            with _opened(folder) as handle:
                with suppress(OSError):  # some file systems have no locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
                # Another process may have removed it before it was locked.
                if folder.exists():
                    yield folder
                    return


def _prefix(target: Path) -> Path:
    """Return the path that the temporary folders of `target` begin with."""
    return target.with_name(f".{target.name}.")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    with _opened(path) as handle:
        os.fsync(handle)
