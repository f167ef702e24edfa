"""What git has: its output, and files of a revision."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(*arguments: str) -> str:
    """What git prints; nothing where it fails, as it does outside a repository."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def read_at(revision: str, path: str) -> str:
    """A file of a git revision, or of the workspace for ""; nothing where there is none."""
    if revision:
        return git("show", f"{revision}:{path}")
    file = Path(path)
    return file.read_text(encoding="utf-8") if file.is_file() else ""
