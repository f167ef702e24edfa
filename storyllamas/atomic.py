"""Files and folders that are either whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing bytes; rename it to `path` on success.

    On any exception the temporary file is removed and an existing `path` is left as it was.
    Parent folders are created.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a temporary folder beside `path`; move its files into the folder `path` on success.

    Other files in `path` stay. On any exception the temporary folder is removed and `path` is left
    as it was. Parent folders are created.
    """
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}."
    with tempfile.TemporaryDirectory(".tmp", prefix, target.parent) as temporary:
        yield Path(temporary)
        files = sorted(Path(temporary).iterdir())
        for name in files:
            with name.open("rb") as file:
                os.fsync(file.fileno())
        target.mkdir(exist_ok=True)
        for name in files:
            name.replace(target / name.name)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities are refused (`ValueError`)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
