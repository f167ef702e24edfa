"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tinystories() -> Path:
    """The folder of real TinyStories text, or a skip where there is none."""
    default = ROOT.parent / "shared" / "data" / "tinystories"
    folder = Path(os.environ.get("STORYLLAMAS_TINYSTORIES", default))
    if not (folder / "TinyStories-train.txt").is_file():
        pytest.skip("set STORYLLAMAS_TINYSTORIES to a folder with TinyStories-train.txt")
    return folder
