"""The options of generation: `sl_options` from Python values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storyllamas.engine.ffi import ffi, lib
from storyllamas.errors import UserError
from storyllamas.rounding import shortest_float32


def _set_option(options: Any, name: str, value: float) -> None:
    try:
        setattr(options, name, value)
    except (OverflowError, TypeError):
        kind = dict(ffi.typeof(options).fields)[name].type
        raise UserError(f"{name} is {value!r} and must be {_describe(kind)}") from None


def _describe(kind: Any) -> str:
    """Describe the numbers of a C type; the engine has narrower ranges for some options."""
    if kind.cname in ("float", "double"):
        return "a number"
    bits = 8 * ffi.sizeof(kind) - (not kind.cname.startswith("u"))
    return f"a whole number from 0 to {2**bits - 1}"


def make_options(given: Mapping[str, float | None]) -> Any:
    """Make `sl_options`; a value of None takes the default."""
    options = lib.sl_defaults()
    for name, value in given.items():
        if name not in DEFAULTS:
            raise TypeError(f"{name!r} is not an option: use one of {', '.join(DEFAULTS)}")
        if value is not None:
            _set_option(options, name, value)
    return options


def fields(struct: Any) -> dict[str, Any]:
    """Return the fields of a C structure; its floats have 32 bits."""
    found = {name: getattr(struct, name) for name in dir(struct)}
    return {
        name: shortest_float32(value) if isinstance(value, float) else value
        for name, value in found.items()
    }


DEFAULTS = fields(lib.sl_defaults())
"""The default options of `Engine.generate`: SL_OPTIONS_DEFAULTS in C."""
