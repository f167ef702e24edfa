"""Opening files that must be regular files: a pipe would block, and a folder has no bytes."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from storyllamas.errors import UserError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


# A pipe that nobody writes to would block without O_NONBLOCK. Windows has O_BINARY alone.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading bytes; symbolic links are followed.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a regular file, or the system does not let you read it.
    """
    check_path(path)
    try:
        handle = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")
    raise UserError(f"{path} is {kind}: give the path of a file")


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a regular file; see `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def check_path(path: str | os.PathLike[str]) -> None:
    """Check that the system can take a path; C would cut it off at a NUL byte.

    Raises:
        UserError: it contains a NUL byte.
    """
    if b"\0" in os.fsencode(path):
        raise UserError(f"the path {os.fspath(path)!r} contains a NUL byte: remove it")
