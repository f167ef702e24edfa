"""The environment of a training: set once, and never over what the user set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from storyllamas.training import environment
environment.prepare()
assert "torch" not in sys.modules
print(os.getpid(), os.environ["GLIBC_TUNABLES"], sys.argv[1:])
"""


def run(**variables: str) -> tuple[int, str]:
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "two words"],
        cwd=Path(__file__).parent.parent,
        env=environment | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return process.pid, output.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has glibc")
def test_it_is_set_before_the_process_begins() -> None:
    pid, output = run()
    assert output == f"{pid} glibc.malloc.hugetlb=1 ['two words']"


def test_what_the_user_set_stays() -> None:
    pid, output = run(GLIBC_TUNABLES="glibc.malloc.perturb=0")
    assert output == f"{pid} glibc.malloc.perturb=0 ['two words']"
