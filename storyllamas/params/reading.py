"""Read params.yaml."""

from __future__ import annotations

import os
from typing import Any

from storyllamas import yaml_loader
from storyllamas.errors import UserError
from storyllamas.params.parsing import parse
from storyllamas.params.sections import Params
from storyllamas.regular_file import open_regular


def load(path: str | os.PathLike[str] = "params.yaml") -> Params:
    """Read and check the parameters.

    Raises:
        UserError: the file is missing or not YAML, or a value is unknown or impossible.
    """
    return parse(read(path))


def read(path: str | os.PathLike[str]) -> Any:
    """Read the values of the file without checking them.

    Raises:
        UserError: the file is missing or not YAML.
    """
    try:
        with open_regular(path) as file:
            return loads(file.read().decode(), str(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: change to the folder that contains it") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start:,}): convert it"
        ) from None


def loads(text: str, name: str = "params.yaml") -> Any:
    """Parse a text without checking the values; `name` is for messages."""
    return yaml_loader.loads(text, name)
