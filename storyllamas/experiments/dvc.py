"""DVC as `make` runs it: `python -m storyllamas.experiments.dvc exp run ...`."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

from storyllamas import workdir
from storyllamas.experiments import git

# Whose experiments they are where git knows no name, as on a new machine: DVC asks for one.
IDENTITY = "storyllamas"


def environment() -> dict[str, str]:
    """That of DVC: with a name for git, and one place for the checkpoints of all workspaces."""
    values = {**os.environ, "STORYLLAMAS_STATE": str(workdir.root().absolute())}
    if not (git.git("config", "user.name") and git.git("config", "user.email")):
        for who, what in product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
            values.setdefault(f"GIT_{who}_{what}", IDENTITY)
    return values


def run(*arguments: str) -> int:
    """Run DVC to its end and return its exit status; Ctrl-C is for it and what it runs."""
    process = subprocess.Popen([sys.executable, "-m", "dvc", *arguments], env=environment())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    raise SystemExit(run(*sys.argv[1:]))
