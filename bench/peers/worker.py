"""Answer the requests of worker.h in Python."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

BOS = 1
TOP_P = 0.9


class Worker(Protocol):
    """A loaded model; a method that the program lacks raises NotImplementedError."""

    vocab_size: int

    def story(self, steps: int, seed: int) -> None:
        """Sample `steps` tokens after BOS."""

    def prompt(self, ids: Sequence[int]) -> None:
        """Compute the logits after the last of `ids`."""

    def batch(self, sequences: int, steps: int, seed: int) -> None:
        """Sample `steps` tokens of each of `sequences` in a batch."""

    def greedy(self, steps: int) -> list[int]:
        """Return the `steps` most probable tokens after BOS."""

    def about(self) -> str:
        """Describe the program, for example its version."""


def prompt_ids(count: int, seed: int, vocab_size: int) -> list[int]:
    """Return a prompt of `count` ids without control tokens that depends on the seed."""
    return [3 + (31 * i + seed) % (vocab_size - 3) for i in range(count)]


def serve(worker: Worker) -> None:
    """Answer requests until standard input ends."""
    for line in sys.stdin:
        request, *numbers = line.split()
        print(json.dumps(_answer(worker, request, [int(number) for number in numbers])), flush=True)


def _answer(worker: Worker, request: str, numbers: list[int]) -> dict[str, object]:
    if request == "greedy":
        return {"ids": worker.greedy(numbers[0])}
    if request == "about":
        return {"about": worker.about()}
    if request == "prompt":
        count, seed = numbers
        ids = prompt_ids(count, seed, worker.vocab_size)
        return _timed(worker.prompt, ids)
    generate = worker.story if request == "story" else worker.batch
    return _timed(generate, *numbers)


def _timed(run: Callable[..., None], *arguments: object) -> dict[str, object]:
    start = time.perf_counter()
    try:
        run(*arguments)
    except NotImplementedError:
        return {}
    return {"seconds": time.perf_counter() - start}
