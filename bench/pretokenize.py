"""`make bench-pretokenize`: the stage `pretokenize` on a corpus of two gigabytes.

The corpus is the given one again and again, with an invented word put into each story, so that the
cache of words meets new ones as it does in a corpus of that size. It is written to a temporary
folder and removed afterwards. The stage runs in a process of its own, with one thread and with two.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import build
from storyllamas import tokenizer
from storyllamas.corpus import files
from storyllamas.errors import UserError, exit_on_user_error

STAGE = """
import sys
from storyllamas.pretokenize import pretokenize
corpus, model, target, threads = sys.argv[1:]
pretokenize(corpus, model, target, int(threads))
print("done")
"""
SAMPLE_STORIES = 5000
_SPACE_FACTOR = 2.5
"""Disk space over the corpus's size: itself, and two token files, of half its size each."""


@dataclass(frozen=True)
class Run:
    """One run of the stage.

    Attributes:
        bytes: of the corpus.
        threads: that worked.
        seconds: from the start of the process to its end.
        peak_bytes: most memory that was resident.
    """

    bytes: int
    threads: int
    seconds: float
    peak_bytes: int


def write_corpus(source: Path, target: Path, size: int) -> None:
    """Write a corpus of that many bytes, or a story more."""
    stories = [story.split(" ") for story in files.read(source)]
    draw = random.Random(0)

    def varied() -> Iterator[str]:
        written = 0
        while written < size:
            for words in stories:
                place = draw.randrange(len(words))
                word = "".join(draw.choices("abcdefghilmnoprstuvwy", k=8))
                story = " ".join([*words[:place], word, *words[place:]])
                written += len(story.encode()) + len(files.SEPARATOR) + 2
                yield story
                if written >= size:
                    return

    with target.open("wb") as file:
        files.write(file, varied())


def run(corpus: Path, model: Path, target: Path, threads: int) -> Run:
    """Run the stage and watch it."""
    arguments = map(str, (corpus, model, target, threads))
    command = [str(build.start()), sys.executable, "-c", STAGE, *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    found = json.loads(output)
    size = corpus.stat().st_size
    return Run(size, threads, found["first_byte"], found["peak_bytes"])


def sentencepiece_speed(corpus: Path, trained: tokenizer.Tokenizer) -> float:
    """Bytes a second of SentencePiece on the first stories, on one thread."""
    stories = list(islice(files.read(corpus), SAMPLE_STORIES))
    began = time.perf_counter()
    trained.processor.encode(stories, num_threads=1)
    return sum(len(story.encode()) for story in stories) / (time.perf_counter() - began)


def measure(source: Path, folder: Path, sizes: list[int]) -> tuple[list[Run], float]:
    """Runs of each size with one thread and with two, and SentencePiece's speed."""
    model = folder / "tokenizer.model"
    model.write_bytes(tokenizer.train(files.sample(source, 10_000_000), 4096))
    runs = []
    corpus = folder / "corpus.txt"
    for size in sizes:
        print(f"writing {size / 1e6:,.0f} MB …", file=sys.stderr, flush=True)
        write_corpus(source, corpus, size)
        for threads in (1, 2):
            print(f"{threads} thread{'s'[: threads - 1]} …", file=sys.stderr, flush=True)
            runs.append(run(corpus, model, folder / f"{threads}.bin", threads))
        if not filecmp.cmp(folder / "1.bin", folder / "2.bin", shallow=False):
            raise UserError("one thread and two write other tokens")
    return runs, sentencepiece_speed(corpus, tokenizer.load(model))


def _check_space(folder: Path, size: int) -> None:
    free, wanted = shutil.disk_usage(folder).free, int(_SPACE_FACTOR * size)
    if free < wanted:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free and {wanted / 1e9:.1f} GB are needed: "
            "set TMPDIR to another folder, or give a smaller size"
        )


@exit_on_user_error
def main() -> None:
    """Take the source and the sizes from the command line."""
    parser = argparse.ArgumentParser(prog="bench.pretokenize", description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, default=Path("data/corpus/train.txt"))
    parser.add_argument("--megabytes", type=float, nargs="+", default=[20, 2000])
    arguments = parser.parse_args()
    sizes = [int(1e6 * megabytes) for megabytes in arguments.megabytes]
    with tempfile.TemporaryDirectory(prefix="bench-pretokenize-") as name:
        _check_space(Path(name), max(sizes))
        runs, peer = measure(arguments.source, Path(name), sizes)
    table = Table("corpus, MB", "threads", "seconds", "MB/s", "peak of memory, MiB")
    for found in runs:
        table.add_row(
            f"{found.bytes / 1e6:,.0f}",
            str(found.threads),
            f"{found.seconds:.1f}",
            f"{found.bytes / 1e6 / found.seconds:.0f}",
            f"{found.peak_bytes / 2**20:.0f}",
        )
    Console(width=100).print(table)
    print(
        f"SentencePiece on one thread: {peer / 1e6:.1f} MB/s on {SAMPLE_STORIES:,} stories, so "
        f"about {max(sizes) / peer:,.0f} s for {max(sizes) / 1e6:,.0f} MB (extrapolated)"
    )


if __name__ == "__main__":
    main()
