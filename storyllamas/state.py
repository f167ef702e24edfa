"""Where work in progress is kept, outside DVC's outputs, which DVC deletes before a stage runs."""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """The folder `$STORYLLAMAS_STATE`, or `.storyllamas` in the working directory."""
    return Path(os.environ.get("STORYLLAMAS_STATE") or ".storyllamas")
