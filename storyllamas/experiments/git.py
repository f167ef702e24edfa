"""Output of git commands, and files of git revisions."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(*arguments: str) -> str:
    """Return the output of a git command; empty if it fails, as outside a repository."""
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def head() -> str:
    """Return the hash of the commit that is checked out; empty if there is none."""
    return git("rev-parse", "--verify", "--quiet", "HEAD").strip()


def exists(revision: str) -> bool:
    """Return whether the repository has a revision."""
    return bool(git("rev-parse", "--verify", "--quiet", revision))


def differs(revision: str, paths: tuple[str, ...]) -> bool:
    """Return whether any of `paths` in the workspace differs from a revision."""
    command = ["git", "diff", "--quiet", revision, "--", *paths]
    return subprocess.run(command, check=False).returncode != 0


def read_at(revision: str, path: str) -> str:
    """Return the text of a file in a git revision; empty if it has no such file.

    Args:
        revision: any name of a revision; empty: the workspace.
        path: relative to the root of the repository.
    """
    if revision:
        return git("show", f"{revision}:{path}")
    file = Path(path)
    return file.read_text(encoding="utf-8") if file.is_file() else ""
