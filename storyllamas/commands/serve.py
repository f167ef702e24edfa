"""The command `storyllamas serve`."""

from __future__ import annotations

import argparse

from storyllamas.argument_types import named_path, not_negative, positive, whole
from storyllamas.commands.engine_options import add_engine_options, open_engine

SUMMARY = "answer requests over HTTP as OpenAI's interface does"

DESCRIPTION = "Answer requests over HTTP as OpenAI's interface does"

EXTRA = "serve"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", type=named_path, metavar="FILE", help="weight file")
    add_engine_options(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0: all of this machine (default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=whole, default=8080, metavar="N", help="0: any free one (default: 8080)"
    )
    parser.add_argument(
        "--slots",
        type=positive,
        default=32,
        metavar="N",
        help="sequences that are generated at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--max-waiting",
        type=not_negative,
        default=256,
        metavar="N",
        help="sequences that may wait for a slot; further requests get status 429 (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--web",
        type=named_path,
        metavar="FOLDER",
        help="show a page at /, such as build/web, which `make web` builds",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from storyllamas.server.serve import serve

    engine = open_engine(arguments)
    serve(
        engine,
        arguments.model.stem,
        host=arguments.host,
        port=arguments.port,
        slots=arguments.slots,
        max_waiting=arguments.max_waiting,
        web=arguments.web,
    )
