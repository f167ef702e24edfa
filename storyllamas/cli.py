"""The command line: `storyllamas COMMAND`; `storyllamas --help` lists the commands.

Each command is a module of `storyllamas.commands`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

from storyllamas.commands import (
    chat,
    completion,
    corpus,
    evaluate,
    export,
    generate,
    import_,
    info,
    judge,
    merge,
    plan,
    serve,
)
from storyllamas.errors import UserError, exit_on_user_error, one_line
from storyllamas.extras import needs

DESCRIPTION = """\
Generate stories with a small Llama model, and convert models from and to other programs.

A model is a weight file (.slm), which the C engine runs. `dvc repro` writes weight files to
models/SIZE/export/. The default is the float32 file of the size that params.yaml names, or
the model in models/pretrained/ if that size is not trained.
"""

EPILOG = """\
examples:
  storyllamas generate --prompt "Once upon a time" --seed 7
  storyllamas generate --model models/30m/export/q8.slm --temperature 0
  storyllamas generate --count 1000 --out stories.jsonl
  storyllamas generate --prompt-file beginning.txt --seed random
  storyllamas generate --words "dragon, cake, sad" --ending happy
  storyllamas chat SmolLM2.slm --system "Answer in one sentence."
  storyllamas info models/2m/export/q8.slm
  storyllamas evaluate --stories data/corpus/valid.txt
  storyllamas judge stories.jsonl --endpoint http://127.0.0.1:8000/v1 --judge NAME
  storyllamas corpus data/corpus --picture corpus.png
  storyllamas export --to gguf-q8_0 my-story-model
  storyllamas plan -S recipe=fast
  storyllamas import stories15M.bin --out stories15M.slm
  storyllamas merge base.slm models/2m/adapter.safetensors merged.slm
"""


class Command(Protocol):
    """A module of `storyllamas.commands`.

    Attributes:
        SUMMARY: its line in the help of `storyllamas`.
        DESCRIPTION: what its own help says before the options.
        EXTRA: the extra of pyproject.toml that installs what `run` imports.
    """

    SUMMARY: str
    DESCRIPTION: str
    EXTRA: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the command."""

    def run(self, arguments: argparse.Namespace) -> None:
        """Run the command."""


COMMANDS: dict[str, Command] = {
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "info": info,
    "evaluate": evaluate,
    "judge": judge,
    "corpus": corpus,
    "export": export,
    "import": import_,
    "merge": merge,
    "plan": plan,
    "completion": completion,
}
"""Every command by name, in the order of the help."""


class _Parser(argparse.ArgumentParser):
    """A parser that says in one sentence what is wrong, instead of the usage of all options."""

    def error(self, message: str) -> NoReturn:
        help_of = f"{self.prog} --help"
        self.exit(2, f"error: {self.prog}: {one_line(message)}; {help_of} lists the options\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; a wrong option is one of the command, not of `storyllamas`."""
    parsed, unknown = _parser().parse_known_args(arguments)
    if unknown:
        parsed.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return parsed


def _parser() -> _Parser:
    parser = _Parser(
        prog="storyllamas",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=command.run, extra=command.EXTRA, parser=sub)
        command.add_options(sub)
    return parser


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error is one sentence on stderr and exit status 1 or 2."""
    parsed = _parse(arguments)
    _check_stdout(parsed)
    try:
        with needs(parsed.extra):
            parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, as in `storyllamas generate | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            error.filename = "standard output"
            # Python would try to write the rest at its exit, and fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _check_stdout(parsed: argparse.Namespace) -> None:
    """Check that standard output is open, unless all output goes to a file."""
    if sys.stdout is not None:
        return
    if getattr(parsed, "out", None) is None:
        raise UserError("standard output is closed: connect it to a file, pipe or terminal")
    # Otherwise the next file that is opened would become standard output.
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
