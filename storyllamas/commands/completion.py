"""The command `storyllamas completion`."""

from __future__ import annotations

import argparse
import sys

from storyllamas import completions

SUMMARY = "print a script that completes commands"

DESCRIPTION = """\
Print a script that completes commands, options and files of `storyllamas` in a shell.

  bash   eval "$(storyllamas completion bash)"                  in ~/.bashrc
  fish   storyllamas completion fish | source                   in ~/.config/fish/config.fish
  zsh    storyllamas completion zsh > FOLDER/_storyllamas       with a FOLDER of $fpath
"""

EXTRA = "train"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("shell", choices=completions.SHELLS, metavar="SHELL", help="see above")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    sys.stdout.write(completions.script(arguments.shell))
