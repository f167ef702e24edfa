"""The C library for Python: its functions, and conversion of errors, text and ids."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from storyllamas.errors import UserError

try:
    from storyllamas._engine import ffi, lib
except ImportError:
    raise UserError("the C engine is not built: run `python -m storyllamas.engine.build`") from None

__all__ = ["check", "ffi", "ids_pointer", "lib", "string", "utf8", "whole_ids"]

Ids = npt.NDArray[np.int32]


def check(status: int) -> None:
    """Raise this thread's error of the C library as a `UserError` if a call failed."""
    if status:
        raise UserError(string(lib.sl_error()))


def string(text: Any) -> str:
    """Convert a C string."""
    return bytes(ffi.string(text)).decode(errors="replace")


def utf8(text: str) -> bytes:
    """Encode a text as UTF-8.

    Raises:
        UserError: it is not a text, or contains half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise UserError(f"the text is {text!r} and must be a string")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is not valid Unicode: remove its character {error.start}, "
            f"{text[error.start]!a}, which is half of a surrogate pair"
        ) from None


def whole_ids(ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Ids:
    """Convert ids to int32; NumPy alone would truncate fractions and wrap large numbers.

    Raises:
        UserError: an id is not a whole number of 32 bits.
    """
    if isinstance(ids, np.ndarray):
        whole = ids.astype(np.int32).reshape(-1)
        if ids.dtype.kind in "iu" and (whole == ids.reshape(-1)).all():
            return whole
    else:
        with suppress(TypeError, OverflowError):
            return np.asarray(array("i", ids), np.int32)
    raise UserError("a token id is not a whole number of 32 bits: give ids of the vocabulary")


def ids_pointer(array: Ids) -> Any:
    """Return the C pointer to an array of ids."""
    return ffi.from_buffer("int32_t[]", array)
