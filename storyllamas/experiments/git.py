"""Output of git commands, and files of git revisions."""

from __future__ import annotations

import subprocess
from pathlib import Path

from storyllamas.errors import UserError


def git(*arguments: str) -> str:
    """Return the output of a git command; empty if it fails, as outside a repository."""
    try:
        done = _run(*arguments)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a git command; files in git are UTF-8, whatever the locale."""
    return subprocess.run(
        ["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False
    )


def check_repository() -> None:
    """Check that DVC can store experiments in this folder's repository.

    Raises:
        UserError: git is not installed, the folder has no commit, or the clone is shallow.
    """
    try:
        done = _run("rev-parse", "--verify", "HEAD")
    except FileNotFoundError:
        raise UserError("git is not installed, and DVC stores experiments in git") from None
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise UserError(
            f"DVC stores experiments next to a git commit, and this folder has none ({reason}): "
            "clone the project"
        )
    if git("rev-parse", "--is-shallow-repository").strip() == "true":
        raise UserError(
            "DVC stores no experiments in a shallow clone: run `git fetch --unshallow` first"
        )


def head() -> str:
    """Return the hash of the commit that is checked out; empty if there is none."""
    return git("rev-parse", "--verify", "--quiet", "HEAD").strip()


def exists(revision: str) -> bool:
    """Return whether the repository has a revision."""
    return bool(git("rev-parse", "--verify", "--quiet", revision))


def differs(revision: str, paths: tuple[str, ...]) -> bool:
    """Return whether any of `paths` in the workspace differs from a revision, or git fails."""
    return _run("diff", "--quiet", revision, "--", *paths).returncode != 0


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
