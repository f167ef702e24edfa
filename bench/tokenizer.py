"""`make bench-tokenizer`: compare the speed of StoryLlamas, SentencePiece and HF tokenizers.

All tokenizers encode the same stories with the same vocabulary on one thread, in interleaved
rounds. The table has the median MB/s and whether the ids equal those of the first row, the library
that trained the tokenizer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, get_args

import tokenizers
from rich.console import Console
from rich.table import Table

from storyllamas import tokenizer
from storyllamas.corpus import files
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.interop.huggingface import tokenizer_json
from storyllamas.tokenizer.base import Tokenizer
from storyllamas.tokenizer.sentencepiece import SentencePieceTokenizer
from storyllamas.vocabulary import TrainableKind

Ids = list[list[int]]


@dataclass
class Entry:
    """A tokenizer and the seconds of each round.

    Attributes:
        name: for the table.
        encode: encodes all stories to the tokenizer's own type.
        decode: decodes the result of `encode`.
        ids: returns all ids in the result of `encode`, in the order of the stories.
        seconds: of each round, by operation.
    """

    name: str
    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    ids: Callable[[Any], list[int]]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"encode": [], "decode": []})

    def measure(self) -> None:
        """Measure one round."""
        began = time.perf_counter()
        encoded = self.encode()
        between = time.perf_counter()
        self.decode(encoded)
        self.seconds["encode"].append(between - began)
        self.seconds["decode"].append(time.perf_counter() - between)

    def speed(self, name: str, text_bytes: int) -> str:
        """Format the median MB/s and its range."""
        found = sorted(text_bytes / 1e6 / seconds for seconds in self.seconds[name])
        return f"{median(found):,.1f} ({found[0]:,.1f} … {found[-1]:,.1f})"


def _chained(ids: Ids) -> list[int]:
    return list(itertools.chain(*ids))


def entries(trained: Tokenizer, stories: Sequence[str]) -> list[Entry]:
    """Return the tokenizers, first that of the library that trained it."""
    fast = FastTokenizer.of(trained.vocabulary())
    raw = [story.encode() for story in stories]
    peers = [_hugging_face(trained, stories)]
    if isinstance(trained, SentencePieceTokenizer):
        peers.insert(0, _sentencepiece(trained, stories))
    reference, *others = peers
    return [
        reference,
        Entry(
            "StoryLlamas, all stories into one array",
            lambda: fast.encode_stories(raw),
            fast.decode,
            lambda array: array.tolist(),
        ),
        Entry(
            "StoryLlamas, each story into a list",
            lambda: [fast.encode(story) for story in stories],
            lambda ids: [fast.decode(story) for story in ids],
            _chained,
        ),
        *others,
    ]


def _sentencepiece(trained: SentencePieceTokenizer, stories: Sequence[str]) -> Entry:
    processor = trained.processor
    return Entry(
        "SentencePiece",
        lambda: processor.encode(stories, num_threads=1),
        lambda ids: processor.decode(ids, num_threads=1),
        _chained,
    )


def _hugging_face(trained: Tokenizer, stories: Sequence[str]) -> Entry:
    peer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(trained.vocabulary())))
    peer.encode_special_tokens = True
    return Entry(
        f"tokenizers {tokenizers.__version__}",
        lambda: peer.encode_batch_fast(stories, add_special_tokens=False),
        lambda encodings: peer.decode_batch([encoding.ids for encoding in encodings]),
        lambda encodings: _chained([encoding.ids for encoding in encodings]),
    )


def _stories(path: Path, size: int) -> list[str]:
    stories, total = [], 0
    for story in files.read(path):
        stories.append(story)
        total += len(story.encode())
        if total >= size:
            break
    return stories


def _train(path: Path, kind: TrainableKind) -> Tokenizer:
    print(f"training a tokenizer on {path}", file=sys.stderr)
    sample = files.sample(path, 10_000_000)
    return tokenizer.from_bytes(tokenizer.train(sample, 4096, kind=kind))


@exit_on_user_error
def main() -> None:
    """Parse the command line, measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tokenizer", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "corpus",
        nargs="?",
        type=Path,
        default=Path("data/corpus/train.txt"),
        help="stories to encode",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="models/tokenizer.model (default: train one on the corpus)"
    )
    parser.add_argument(
        "--kind",
        choices=get_args(TrainableKind),
        default="sentencepiece",
        help="kind of the tokenizer to train",
    )
    parser.add_argument("--megabytes", type=float, default=10, help="size of the text to encode")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each tokenizer")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}: give 1 or more")
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    stories = _stories(arguments.corpus, int(1e6 * arguments.megabytes))
    given = arguments.tokenizer
    trained = tokenizer.load(given) if given else _train(arguments.corpus, arguments.kind)
    competitors = entries(trained, stories)
    different = _compare(competitors)
    for _ in range(arguments.rounds):
        for entry in competitors:
            entry.measure()
    _show(competitors, different, sum(len(story.encode()) for story in stories), len(stories))
    if any(different[entry.name] for entry in competitors if "StoryLlamas" in entry.name):
        sys.exit("error: the ids of StoryLlamas differ from those of the first row")


def _compare(competitors: Sequence[Entry]) -> dict[str, bool]:
    """Return for each tokenizer whether its ids differ from those of the first."""
    found = {entry.name: entry.ids(entry.encode()) for entry in competitors}
    expected = found[competitors[0].name]
    return {name: ids != expected for name, ids in found.items()}


def _show(
    competitors: Sequence[Entry], different: dict[str, bool], text_bytes: int, stories: int
) -> None:
    title = f"{stories:,} stories, {text_bytes / 1e6:.1f} MB: MB/s on one thread, median (range)"
    table = Table("", "encode", "decode", "ids", title=title)
    for entry in competitors:
        speeds = [entry.speed(name, text_bytes) for name in ("encode", "decode")]
        table.add_row(entry.name, *speeds, "different" if different[entry.name] else "equal")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
