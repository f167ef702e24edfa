"""What to say when the disk refuses something."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from pathlib import Path

# What the system says when there is no room: on the disk, in the user's quota, in a file's limit.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refusal(error: OSError, folder: Path, needed: int) -> str:
    """Why `needed` bytes could not be written to `folder` and what would do: half a sentence."""
    if error.errno not in NO_ROOM:
        return f"{folder} cannot be written to ({error.strerror}), make it writable"
    free = ""
    with suppress(OSError):
        free = f" of {_megabytes(shutil.disk_usage(folder).free)} that are free"
    return f"{folder} needs {_megabytes(needed)}{free} ({error.strerror}), make room there"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
