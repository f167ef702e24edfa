"""The command `storyllamas evaluate`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from itertools import islice
from pathlib import Path

from storyllamas import instruct
from storyllamas.argument_types import named_path, positive
from storyllamas.commands.engine_options import add_engine_options, open_engine

SUMMARY = "print loss, perplexity and bits per byte on stories"

DESCRIPTION = "Print loss, perplexity and bits per byte on stories"

EXTRA = "train"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", type=named_path, metavar="FILE", help="weight file")
    add_engine_options(parser)
    parser.add_argument(
        "--stories",
        type=named_path,
        default=Path("data/corpus/valid.txt"),
        metavar="FILE",
        help="file of stories, in any format of a corpus (default: %(default)s)",
    )
    parser.add_argument(
        "--count",
        type=positive,
        default=200,
        metavar="N",
        help="score the first N stories (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from storyllamas import evaluation
    from storyllamas.corpus import formats as corpus_formats

    engine = open_engine(arguments)
    is_instruct = engine.chat_template == instruct.CHAT_TEMPLATE
    kind = "instruct" if is_instruct else corpus_formats.STORIES
    texts = islice(corpus_formats.read(arguments.stories, kind=kind), arguments.count)
    stories = [instruct.parse(text) or text for text in texts] if is_instruct else list(texts)
    result = {"stories": len(stories), **dataclasses.asdict(evaluation.score(engine, stories))}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:14} {value:,}" if type(value) is int else f"{name:14} {value:.4f}")
