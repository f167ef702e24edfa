"""The C library as Python sees it: its functions, its errors, its text and its ids."""

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
    """Raise a C function's error, which is of this thread, as a `UserError`."""
    if status:
        raise UserError(string(lib.sl_error()))


def string(text: Any) -> str:
    """A C string."""
    return bytes(ffi.string(text)).decode(errors="replace")


def utf8(text: str) -> bytes:
    """A text's bytes; `UserError` if it holds half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is not valid Unicode: character {error.start} is half of a surrogate pair"
        ) from None


def whole_ids(ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Ids:
    """The ids as int32; NumPy alone would cut fractions off and wrap what does not fit."""
    if isinstance(ids, np.ndarray):
        whole = ids.astype(np.int32).reshape(-1)
        if ids.dtype.kind in "iu" and (whole == ids.reshape(-1)).all():
            return whole
    else:
        with suppress(TypeError, OverflowError):
            return np.asarray(array("i", ids), np.int32)
    raise UserError("a token id is not whole or does not fit 32 bits: give a vocabulary's ids")


def ids_pointer(array: Ids) -> Any:
    """What C takes for an array of ids."""
    return ffi.from_buffer("int32_t[]", array)
