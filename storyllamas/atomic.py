"""Atomic writes: a file or folder appears complete or not at all, even if the power fails.

On Windows, where a folder cannot be locked or synchronized, leftovers of killed writers stay, and
the last files before a power failure may be lost.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

if sys.platform != "win32":
    import fcntl

_REPLACED = "replaced"
"""The name of an old folder in a temporary folder, between two renames."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; the file that you write there becomes `path` on success.

    The file is then on the disk and survives a power failure. On an exception an existing `path`
    stays as it was. Parent folders are created. Temporary files of killed writers of `path` are
    removed. If `path` is a symbolic link, its target is replaced and the link stays. A pipe, a
    device or an open file such as /dev/stdout is written directly.

    Raises:
        OSError: the system reports an error; its `filename` is `path` if a write failed.
    """
    if _is_special(path):
        yield Path(path)
        return
    target = _resolve(path)
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
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, seekable: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that becomes `path` on success; see `atomic_path`.

    Args:
        path: the file.
        seekable: the file must support `seek`; what goes to a pipe or device is copied at the end.
    """
    if not _is_special(path):
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            yield file
        return
    # Appending keeps what is in the file that a shell connected to /dev/stdout.
    with Path(path).open("ab") as special:
        if seekable:
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                shutil.copyfileobj(file, special)
        else:
            yield special


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder; on success its files are in the folder `path`, all at once.

    Files with the same names are replaced; other files in `path` stay. The new folder takes the
    place of the old one in one step. On an exception, and if the process is killed, `path` stays
    as it was. Parent folders are created.

    Raises:
        OSError: the system reports an error, or `path` contains a folder or is the current folder.
    """
    target = _resolve(path)
    _check_replaceable(target)
    with _temporary_folder(target) as temporary:
        new = temporary / "new"
        new.mkdir()
        yield new
        for name in sorted(new.iterdir()):
            _sync(name)
        if target.is_dir():
            _check_replaceable(target)
            _link_others(target, new)
            _sync(new)
            _exchange(new, target)
        else:
            _sync(new)
            new.rename(target)
        _sync(target.parent)


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
    if sys.platform == "win32":
        return
    for leftover in folder.glob(f"{glob.escape(prefix)}*.tmp"):
        # A live writer holds the lock.
        with suppress(OSError), _opened(leftover) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _put_back(leftover)
            shutil.rmtree(leftover, ignore_errors=True)


def _put_back(leftover: Path) -> None:
    """Restore the old folder if its writer was killed between two renames."""
    target = leftover.with_name(leftover.name[1:].rsplit(".", 2)[0])
    if (leftover / _REPLACED).is_dir() and not target.exists():
        (leftover / _REPLACED).rename(target)


def _is_special(path: str | os.PathLike[str]) -> bool:
    """Check for a pipe, a device, or a name of an open file, which no other file may replace."""
    link = Path(path).absolute()
    for _ in range(40):
        link = Path(os.path.realpath(link.parent), link.name)
        if re.fullmatch(r"/proc/\d+(/task/\d+)?/fd/\d+", str(link)):
            return True
        if not link.is_symlink():
            break
        link = link.parent / link.readlink()
    return link.exists() and not link.is_file() and not link.is_dir()


def _resolve(path: str | os.PathLike[str]) -> Path:
    """Follow symbolic links, also to a file that does not exist yet."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _check_replaceable(target: Path) -> None:
    """Check that a folder contains files only, so that another folder can take its place."""
    if not target.exists():
        return
    if not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    if target.samefile(Path.cwd()):
        raise OSError(errno.EBUSY, "it is the current folder, name another one", str(target))
    if any(entry.is_dir() and not entry.is_symlink() for entry in target.iterdir()):
        raise OSError(errno.ENOTEMPTY, "it contains folders, name another one", str(target))


def _link_others(old: Path, new: Path) -> None:
    """Give the new folder the mode of the old one and all of its other files."""
    shutil.copystat(old, new)
    for entry in old.iterdir():
        if not (new / entry.name).exists():
            try:
                os.link(entry, new / entry.name, follow_symlinks=False)
            except OSError:  # some file systems have no hard links
                shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def _exchange(new: Path, target: Path) -> None:
    """Exchange two folders in one step, or in two where the system cannot."""
    if _swap(os.fsencode(new), os.fsencode(target)):
        return
    replaced = new.with_name(_REPLACED)
    target.rename(replaced)
    try:
        new.rename(target)
    except OSError:
        replaced.rename(target)
        raise


def _swap(first: bytes, second: bytes) -> bool:
    """Exchange two names in one step if the system can; return whether it did."""
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        return bool(library.renamex_np(first, second, 2) == 0)  # RENAME_SWAP
    if not hasattr(library, "renameat2"):
        return False
    here = -100  # AT_FDCWD
    return bool(library.renameat2(here, first, here, second, 2) == 0)  # RENAME_EXCHANGE


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """Make a temporary folder next to `target` that is locked while this process lives."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = _prefix(target)
    clear_leftovers(prefix.parent, prefix.name)
    while True:
        with tempfile.TemporaryDirectory(".tmp", prefix.name, prefix.parent) as name:
            folder = Path(name)
            if sys.platform == "win32":
                yield folder
                return
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
    # Windows synchronizes only what is open for writing.
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    if sys.platform == "win32" and path.is_dir():
        return
    with _opened(path) as handle:
        os.fsync(handle)
