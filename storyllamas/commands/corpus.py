"""The command `storyllamas corpus`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from storyllamas.argument_types import named_path, whole
from storyllamas.errors import UserError

SUMMARY = "print statistics of a corpus"

DESCRIPTION = """\
Print statistics of a corpus: its stories, their lengths, words and beginnings, duplicates, decoding
errors, characters beyond ASCII, and three random stories.

A folder with train.txt and valid.txt has these two parts. Any other folder or file is one part.
"""

EXTRA = "train"


CORPUS_FOLDER = Path("data/corpus")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "corpus",
        nargs="?",
        type=named_path,
        metavar="FILE_OR_FOLDER",
        help=f"any value of corpus.source in params.yaml (default: {CORPUS_FOLDER}, the corpus in "
        "use)",
    )
    parser.add_argument(
        "--edition",
        choices=["v1", "v2-gpt4"],
        default="v1",
        help="edition of TinyStories, if the folder has both (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole,
        default=1,
        metavar="N",
        help="seed for choosing the random stories (default: %(default)s)",
    )
    parser.add_argument(
        "--picture", type=named_path, metavar="FILE", help="also plot the statistics as a PNG"
    )
    parser.add_argument(
        "--separator",
        default="auto",
        help="line, blank_line, a string, or auto, as corpus.separator of params.yaml (default: "
        "%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from rich.console import Console

    from storyllamas.corpus import sources
    from storyllamas.corpus_stats import plot, report, stats

    if arguments.corpus is None and not CORPUS_FOLDER.is_dir():
        raise UserError(
            f"{CORPUS_FOLDER} does not exist: run `dvc repro download`, or name a file or folder"
        )
    corpus = arguments.corpus or CORPUS_FOLDER
    parts = sources.parts(corpus, arguments.edition, arguments.separator)
    with report.progress(parts) as watched:
        found = stats.collect(watched, arguments.seed)
    if arguments.picture:
        plot.draw(found, arguments.picture)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
    else:
        report.show(found, Console(highlight=False))
