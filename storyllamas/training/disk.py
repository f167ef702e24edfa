"""Messages for a disk that refuses to write."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from pathlib import Path

from storyllamas.errors import UserError

# No room on the disk, in the user's quota, or within the limit on a file's size.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def describe_refusal(error: OSError, folder: Path, needed: int) -> str:
    """Return why `needed` bytes could not be written to `folder` and what to do, as a clause."""
    if error.errno not in _NO_ROOM:
        return f"{folder} cannot be written to ({error.strerror}), make it writable"
    free = ""
    with suppress(OSError):
        free = f" and has {_megabytes(shutil.disk_usage(folder).free)} free"
    return f"{folder} needs {_megabytes(needed)}{free} ({error.strerror}), make room there"


def check_room(folder: Path, needed: int, what: str) -> None:
    """Check that a disk has room, before hours of work whose result needs it.

    Args:
        folder: where to write; it may not exist yet.
        needed: bytes.
        what: what they are, for the message.

    Raises:
        UserError: there is less room.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{what} need {_megabytes(needed)} in {folder}, which has {_megabytes(free)} free: "
            "make room there, or use a smaller text"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
