"""The thread of the server: each sequence is the one that it is alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import engine_files
import pytest

from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.server.worker import Piece, QueueFullError, Worker

DEADLINE = 60


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    config = engine_files.small_config(context=4096)
    path = tmp_path_factory.mktemp("worker") / "model.slm"
    return Engine(engine_files.write(path, config, engine_files.random_tensors(config, 5)))


def pieces(results: queue.Queue[Piece]) -> Iterator[Piece]:
    while True:
        piece = results.get(timeout=DEADLINE)
        yield piece
        if piece.stop or piece.error:
            return


@pytest.mark.parametrize("temperature", [0, 1])
def test_each_is_the_story_that_it_is_alone(engine: Engine, temperature: float) -> None:
    worker = Worker(engine, 3, 20)
    prompts = ["", "ab é", "a" * 50, "b", "é é", "ab ab", "a b"]
    queues: list[queue.Queue[Piece]] = [queue.Queue() for _ in prompts]
    for seed, (prompt, results) in enumerate(zip(prompts, queues, strict=True)):
        worker.submit(prompt, results.put, seed=seed, temperature=temperature, max_tokens=30 + seed)
    for seed, (prompt, results) in enumerate(zip(prompts, queues, strict=True)):
        alone = engine.generate(prompt, seed=seed, temperature=temperature, max_tokens=30 + seed)
        expected = "".join(alone)
        found = list(pieces(results))
        assert ("".join(piece.text for piece in found), found[-1].stop) == (expected, alone.stop)
    worker.close()


def test_cancelled_sequence_frees_its_slot(engine: Engine) -> None:
    worker = Worker(engine, 1, 1)
    first: queue.Queue[Piece] = queue.Queue()
    second: queue.Queue[Piece] = queue.Queue()
    gate = threading.Event()

    def deliver(piece: Piece) -> None:
        first.put(piece)
        gate.wait(DEADLINE)  # the test is never too slow to cancel the sequence

    long = worker.submit("a", deliver, ignore_eos=True, max_tokens=4000)
    first.get(timeout=DEADLINE)
    worker.submit("b", second.put, temperature=0, max_tokens=5)
    long.cancel()
    gate.set()
    text = "".join(piece.text for piece in pieces(second))
    assert text == "".join(engine.generate("b", temperature=0, max_tokens=5))
    assert first.empty()  # no token after the one before the cancellation
    worker.close()


def test_full_queue_and_errors(engine: Engine) -> None:
    worker = Worker(engine, 1, 0)
    results: queue.Queue[Piece] = queue.Queue()
    gate = threading.Event()
    long = worker.submit("a", lambda _: gate.wait(DEADLINE) and None, max_tokens=4000)
    with pytest.raises(
        QueueFullError, match="1 of 1 places for sequences are taken, and the request has 1"
    ):
        worker.submit("a", results.put)
    long.cancel()
    gate.set()
    worker.close()
    with pytest.raises(UserError, match="stopping"):
        worker.submit("a", results.put)
    worker = Worker(engine, 1, 0)
    results = queue.Queue()
    worker.submit("a", results.put, temperature=-1)
    assert "temperature" in next(pieces(results)).error
    worker.close()
