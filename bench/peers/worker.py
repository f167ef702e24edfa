"""What the workers in Python have in common: worker.h in Python, which says what they are."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

BOS = 1
TOP_P = 0.9


class Worker(Protocol):
    """A model, ready to be measured; a method that a program lacks raises NotImplementedError."""

    vocab_size: int

    def story(self, steps: int, seed: int) -> None:
        """Tell a sampled story of `steps` tokens after BOS."""

    def prompt(self, ids: Sequence[int]) -> None:
        """Compute the logits after the last of `ids`."""

    def batch(self, stories: int, steps: int, seed: int) -> None:
        """Tell that many stories at once."""

    def greedy(self, steps: int) -> list[int]:
        """The likeliest tokens after BOS."""

    def about(self) -> str:
        """What is measured, such as a version."""


def prompt_ids(count: int, seed: int, vocab_size: int) -> list[int]:
    """A prompt without control tokens, another one for another seed."""
    return [3 + (31 * i + seed) % (vocab_size - 3) for i in range(count)]


def serve(worker: Worker) -> None:
    """Answer requests until there are no more."""
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
    tell = worker.story if request == "story" else worker.batch
    return _timed(tell, *numbers)


def _timed(run: Callable[..., None], *arguments: object) -> dict[str, object]:
    start = time.perf_counter()
    try:
        run(*arguments)
    except NotImplementedError:
        return {}
    return {"seconds": time.perf_counter() - start}
