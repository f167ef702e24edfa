"""`make bench-pretokenize`: measure the stage `pretokenize` on a corpus of 2 GB.

The corpus repeats the given one. Each story gets a random word, so that the word cache sees new
words at the rate of a corpus of that size. The corpus is written to a temporary folder and deleted
afterwards. The stage runs in its own process, with one thread and with two.
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
from storyllamas.tokenizer.sentencepiece import SentencePieceTokenizer

STAGE = """
import sys
from storyllamas.pretokenize import pretokenize
corpus, model, target, threads = sys.argv[1:]
pretokenize(corpus, model, target, int(threads))
print("done")
"""
SAMPLE_STORIES = 5000
_SPACE_FACTOR = 2.5
"""Disk space as a multiple of the corpus: the corpus, and two token files of half its size."""


@dataclass(frozen=True)
class Run:
    """One run of the stage.

    Attributes:
        bytes: size of the corpus.
        threads: number of threads.
        seconds: from the start of the process to its end.
        peak_bytes: peak resident memory.
    """

    bytes: int
    threads: int
    seconds: float
    peak_bytes: int


def write_corpus(source: Path, target: Path, size: int) -> None:
    """Write a corpus of `size` bytes, rounded up to a whole story."""
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
    """Run the stage in a process and measure time and memory."""
    arguments = map(str, (corpus, model, target, threads))
    command = [str(build.start()), sys.executable, "-c", STAGE, *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    found = json.loads(output)
    size = corpus.stat().st_size
    return Run(size, threads, found["first_byte"], found["peak_bytes"])


def sentencepiece_speed(corpus: Path, trained: SentencePieceTokenizer) -> float:
    """Return bytes a second of SentencePiece on one thread, measured on the first stories."""
    stories = list(islice(files.read(corpus), SAMPLE_STORIES))
    began = time.perf_counter()
    trained.processor.encode(stories, num_threads=1)
    return sum(len(story.encode()) for story in stories) / (time.perf_counter() - began)


def measure(source: Path, folder: Path, sizes: list[int]) -> tuple[list[Run], float]:
    """Measure each size with one thread and with two; return the runs and SentencePiece's speed."""
    model = folder / "tokenizer.model"
    model.write_bytes(tokenizer.train(files.sample(source, 10_000_000), 4096))
    runs = []
    corpus = folder / "corpus.txt"
    for size in sizes:
        print(f"writing {size / 1e6:,.0f} MB", file=sys.stderr, flush=True)
        write_corpus(source, corpus, size)
        for threads in (1, 2):
            print(
                f"measuring with {threads} thread{'s'[: threads - 1]}", file=sys.stderr, flush=True
            )
            runs.append(run(corpus, model, folder / f"{threads}.bin", threads))
        if not filecmp.cmp(folder / "1.bin", folder / "2.bin", shallow=False):
            raise UserError(f"{size:,} bytes: one thread and two threads write different tokens")
    return runs, sentencepiece_speed(corpus, SentencePieceTokenizer(model.read_bytes()))


def _check_space(folder: Path, size: int) -> None:
    free, wanted = shutil.disk_usage(folder).free, int(_SPACE_FACTOR * size)
    if free < wanted:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, but {wanted / 1e9:.1f} GB are needed: "
            "set TMPDIR to another folder or lower --megabytes"
        )


@exit_on_user_error
def main() -> None:
    """Parse the command line, measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.pretokenize", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        default=Path("data/corpus/train.txt"),
        help="corpus to repeat",
    )
    parser.add_argument(
        "--megabytes", type=float, nargs="+", default=[20, 2000], help="sizes of the corpus"
    )
    arguments = parser.parse_args()
    sizes = [int(1e6 * megabytes) for megabytes in arguments.megabytes]
    with tempfile.TemporaryDirectory(prefix="bench-pretokenize-") as name:
        _check_space(Path(name), max(sizes))
        runs, peer = measure(arguments.source, Path(name), sizes)
    table = Table("corpus, MB", "threads", "seconds", "MB/s", "peak memory, MiB")
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
        f"SentencePiece on one thread: {peer / 1e6:.1f} MB/s on {SAMPLE_STORIES:,} stories, "
        f"extrapolated {max(sizes) / peer:,.0f} s for {max(sizes) / 1e6:,.0f} MB"
    )


if __name__ == "__main__":
    main()
