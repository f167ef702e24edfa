"""Environment variables of training: set once, and never over those of the user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("GLIBC_TUNABLES", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
PROGRAM = f"""
import os, sys
from storyllamas.training import process_env
process_env.prepare()
assert "torch" not in sys.modules
print(os.getpid(), *(os.environ.get(name) for name in {NAMES}), sys.argv[1:])
"""


def run(**variables: str) -> list[str]:
    """Return the variables after `prepare`, in a process with those set by the user."""
    environment = {k: v for k, v in os.environ.items() if k not in NAMES}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "two words"],
        cwd=Path(__file__).parent.parent,
        env=environment | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    pid, *values = output.split(maxsplit=4)
    assert int(pid) == process.pid
    assert values.pop() == "['two words']\n"
    return values


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="set on Linux only")


def test_variables_are_set_before_the_process_starts() -> None:
    assert run() == ["glibc.malloc.hugetlb=1", "10000", "None"]


def test_variables_of_the_user_stay() -> None:
    perturb = {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}
    assert run(**perturb) == ["glibc.malloc.perturb=0", "10000", "None"]
    assert run(OMP_WAIT_POLICY="passive") == ["glibc.malloc.hugetlb=1", "None", "passive"]
    assert run(**perturb, GOMP_SPINCOUNT="7") == ["glibc.malloc.perturb=0", "7", "None"]
