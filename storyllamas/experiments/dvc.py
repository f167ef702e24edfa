"""DVC as `make` runs it: `python -m storyllamas.experiments.dvc exp run ...`."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

from storyllamas import workdir
from storyllamas.experiments.git import git

IDENTITY = "storyllamas"
"""Name and address of commits where git has none configured: DVC commits experiments."""


def environment() -> dict[str, str]:
    """Return DVC's environment: an identity for git, one checkpoint folder for all workspaces."""
    values = {**os.environ, "STORYLLAMAS_STATE": str(workdir.root().absolute())}
    if not (git("config", "user.name") and git("config", "user.email")):
        for role, field in product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
            values.setdefault(f"GIT_{role}_{field}", IDENTITY)
    return values


def run(*arguments: str) -> int:
    """Run DVC to its end and return its exit status; Ctrl-C reaches DVC and its stages only."""
    process = subprocess.Popen([sys.executable, "-m", "dvc", *arguments], env=environment())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    raise SystemExit(run(*sys.argv[1:]))
