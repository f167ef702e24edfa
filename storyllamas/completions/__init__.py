"""Scripts that complete the words of a `storyllamas` command in a shell."""

from __future__ import annotations

from importlib import resources

SHELLS = ("bash", "fish", "zsh")


def script(shell: str) -> str:
    """Return the script of one of `SHELLS`."""
    return (resources.files(__name__) / f"storyllamas.{shell}").read_text(encoding="utf-8")
