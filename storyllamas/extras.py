"""Packages that only some commands need; an extra of this package installs each of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from storyllamas.errors import UserError

_DISTRIBUTIONS = {"google": "protobuf", "harper": "harper-py", "yaml": "pyyaml"}
"""The packages that have another name than the module that they install."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Report a module that is missing in the block as a sentence.

    Args:
        extra: the extra that installs what the block imports.

    Raises:
        UserError: a module is not installed, or the system's Python does not have it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "storyllamas"):
            raise
        if name in sys.stdlib_module_names:
            raise UserError(
                f"Python's module {name} does not exist on {sys.platform}: use Linux or macOS"
            ) from None
        raise UserError(
            f"{_DISTRIBUTIONS.get(name, name)} is not installed: "
            f"run `pip install 'storyllamas[{extra}]'`"
        ) from None
