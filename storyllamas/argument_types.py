"""Types of command-line options for argparse; a wrong value is a sentence."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def named_path(text: str) -> Path:
    """Return a path.

    Raises:
        argparse.ArgumentTypeError: the text is empty, as an unset variable of a shell is.
    """
    if not text:
        raise argparse.ArgumentTypeError("the name is empty: name a file or folder")
    return Path(text)


def positive(text: str) -> int:
    """Return a whole number from 1 to the largest size.

    Raises:
        argparse.ArgumentTypeError: the text is not such a number.
    """
    return _size(text, 1)


def not_negative(text: str) -> int:
    """Return a whole number from 0 to the largest size.

    Raises:
        argparse.ArgumentTypeError: the text is not such a number.
    """
    return _size(text, 0)


def _size(text: str, least: int) -> int:
    value, most = whole(text), sys.maxsize
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return value


def whole(text: str) -> int:
    """Return a whole number.

    Raises:
        argparse.ArgumentTypeError: the text is not a whole number.
    """
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def real(text: str) -> float:
    """Return a number.

    Raises:
        argparse.ArgumentTypeError: the text is not a number.
    """
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
