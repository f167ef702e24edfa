"""The JSON files of metrics/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storyllamas.errors import UserError

METRICS = Path("metrics")


def read(name: str) -> dict[str, Any]:
    """Return a JSON file of metrics/; empty if there is no such file.

    Raises:
        UserError: it is not a JSON object.
    """
    path = METRICS / name
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}): write it again with `dvc repro`"
        ) from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is not a JSON object: write it again with `dvc repro`")
    return document
