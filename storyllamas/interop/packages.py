"""Packages that only conversions need, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from storyllamas.errors import UserError


def package(name: str, distribution: str) -> Any:
    """Import a module that only conversions need.

    Args:
        name: the module.
        distribution: the package that installs it, for the message.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{distribution} is not installed: run `pip install 'storyllamas[convert]'`"
        ) from None
