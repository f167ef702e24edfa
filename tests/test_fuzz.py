"""The fuzzers run for half a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import ROOT

SECONDS = 30


def test_the_fuzzers_find_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "tests/fuzz/run.py", "--seconds", str(SECONDS)]
    done = subprocess.run(
        [*command, "--folder", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "no difference" in done.stdout
