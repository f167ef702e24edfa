"""Write the scripts from the command line's parser with shtab: `make completions`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from storyllamas import cli
from storyllamas.completions import SHELLS

PATHS = {
    "FILE": shtab.FILE,
    "FILE_OR_FOLDER": shtab.FILE,
    "FOLDER": shtab.DIRECTORY,
    "PATH": shtab.FILE,
    "SOURCE": shtab.FILE,
}
"""What completes the values that have these names in the help."""


def generate(shell: str) -> str:
    """Return the script for a shell."""
    parser = cli._parser()
    for action in _actions(parser):
        if isinstance(action.metavar, str) and action.metavar in PATHS:
            action.complete = PATHS[action.metavar]  # type: ignore[attr-defined]
    text = shtab.complete(parser, shell)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the options and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def main() -> None:
    """Write all scripts."""
    for shell in SHELLS:
        path = Path(__file__).with_name(f"storyllamas.{shell}")
        path.write_text(generate(shell), encoding="utf-8")


if __name__ == "__main__":
    main()
