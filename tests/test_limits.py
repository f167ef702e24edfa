"""The limits of a model's size in Python and in C."""

from __future__ import annotations

from conftest import ROOT

from storyllamas.slm import limits


def test_the_c_header_is_made_from_the_table() -> None:
    assert (ROOT / "csrc/model_limits.h").read_text() == limits.header()
