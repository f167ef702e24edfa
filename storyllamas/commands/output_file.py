"""Checks that a command does not write over what it reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from storyllamas.errors import UserError


def check_output(out: Path | None, inputs: Iterable[Path | None]) -> None:
    """Check that a file to write is none of the files that the command reads.

    Args:
        out: the file; None: standard output.
        inputs: files, and folders for the files in them, except for weight files (.slm), which no
            command reads from a folder; None stands for nothing.

    Raises:
        UserError: it is one of them.
    """
    if out is None or not out.is_file():
        return
    for each in inputs:
        if each is None or not each.exists():
            continue
        is_inside = each.is_dir() and out.suffix != ".slm" and out.parent.samefile(each)
        if is_inside or out.samefile(each):
            raise UserError(f"{out} is a file that this command reads: give another one")
