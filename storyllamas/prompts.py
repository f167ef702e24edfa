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
    name = "standard input" if source == STANDARD_INPUT else source
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
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"the prompt in {name} is not UTF-8 at byte {error.start}: convert it to UTF-8"
        ) from None
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")
