"""The command `storyllamas chat`."""

from __future__ import annotations

import argparse

from storyllamas.argument_types import named_path
from storyllamas.commands.engine_options import add_draft_options, add_engine_options, open_engine
from storyllamas.commands.sampler_options import OPTIONS, add_sampler_options, sampler_options

SUMMARY = "hold a conversation with a model"

DESCRIPTION = """\
Hold a conversation with a model that has a chat template, such as one that `storyllamas import`
made of an instruction-tuned model.

Each line is a turn. At a terminal, Ctrl-C stops a reply and Ctrl-D ends the conversation. From a
pipe, each line gets a reply on standard output. If the context is full, the oldest turns are
dropped; the system message stays. Notes and errors go to standard error.
"""

EXTRA = "chat"


SAMPLER_OPTIONS = [name for name in OPTIONS if name != "ignore_eos"]

HELP = {
    "seed": "0 and up; the same seed and turns give the same replies; random takes one and prints "
    "it on standard error",
    "max_tokens": "generate at most N tokens for a reply, 1 and up; without it, a reply ends where "
    "the model ends it",
}
"""The help of options that mean something else than in `generate`."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "model", type=named_path, metavar="FILE", help="weight file with a chat template"
    )
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="system message at the start of the conversation (default: that of the template)",
    )
    add_engine_options(parser)
    add_draft_options(parser)
    add_sampler_options(parser, SAMPLER_OPTIONS, HELP)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from storyllamas.chat.terminal import chat

    options = sampler_options(arguments, SAMPLER_OPTIONS)
    chat(open_engine(arguments), arguments.model, arguments.system, options)
