"""Prompts from a file or from standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from storyllamas.errors import UserError

STANDARD_INPUT = "-"

MAX_BYTES = 1 << 26
"""More than any context holds; a device could send bytes without an end."""


def check_standard_input() -> None:
    """Check that standard input is open.

    Raises:
        UserError: it is closed.
    """
    if sys.stdin is None:
        raise UserError("standard input is closed: connect it to a file, pipe or terminal")


def read(source: str) -> str:
    """Return the text of a file, without one line break at its end.

    Args:
        source: a path, or "-" for standard input.

    Raises:
        UserError: it is missing, too long, or not UTF-8.
    """
    text = _text(source)
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")


def read_lines(source: str) -> list[str]:
    """Return the lines of a file, without line breaks.

    Args:
        source: as of `read`.

    Raises:
        UserError: as of `read`.
    """
    lines = _text(source).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _text(source: str) -> str:
    """Return the text of a file, without a byte order mark."""
    name = "standard input" if source == STANDARD_INPUT else source
    if not name:
        raise UserError("the name of the file with the prompt is empty: name a file")
    try:
        if source == STANDARD_INPUT:
            check_standard_input()
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist: give a file with a prompt") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"the prompt in {name} has more than {MAX_BYTES} bytes: give a shorter one")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the prompt in {name} is not UTF-8 at byte {error.start}: convert it to UTF-8"
        ) from None
