"""The thread of the server: each sequence is the one that it is alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import engine_files
import pytest
from engine_files import BOS

from storyllamas.engine.engine import Engine
from storyllamas.engine.options import make_options
from storyllamas.errors import UserError
from storyllamas.server.choice import Choice, Chunk
from storyllamas.server.worker import Piece, QueueFullError, Sequence, Worker

DEADLINE = 60


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    config = engine_files.small_config(context=4096)
    path = tmp_path_factory.mktemp("worker") / "model.slm"
    return Engine(engine_files.write(path, config, engine_files.random_tensors(config, 5)))


def ignore(clients: list[Any]) -> None:
    pass


def sequence(
    engine: Engine, prompt: str, deliver: Callable[[Piece], object], **options: float | None
) -> Sequence:
    ids = [BOS, *engine.encode(prompt)]
    return Sequence(ids, make_options(options), lambda piece: bool(deliver(piece)))


def pieces(results: queue.Queue[Piece]) -> Iterator[Piece]:
    while True:
        piece = results.get(timeout=DEADLINE)
        yield piece
        if piece.stop or piece.error:
            return


@pytest.mark.parametrize("temperature", [0, 1])
def test_each_is_the_story_that_it_is_alone(engine: Engine, temperature: float) -> None:
    worker = Worker(engine, 3, 20, ignore)
    prompts = ["", "ab é", "a" * 50, "b", "é é", "ab ab", "a b"]
    queues: list[queue.Queue[Piece]] = [queue.Queue() for _ in prompts]
    for seed, (prompt, results) in enumerate(zip(prompts, queues, strict=True)):
        options = {"seed": seed, "temperature": temperature, "max_tokens": 30 + seed}
        worker.submit([sequence(engine, prompt, results.put, logprobs=seed % 2, **options)])
    for seed, (prompt, results) in enumerate(zip(prompts, queues, strict=True)):
        alone = engine.generate(
            prompt, seed=seed, temperature=temperature, max_tokens=30 + seed, logprobs=seed % 2
        )
        expected = "".join(alone)
        found = list(pieces(results))
        assert ("".join(piece.text for piece in found), found[-1].stop) == (expected, alone.stop)
        assert [each.logprobs for each in found if each.logprobs] == alone.logprobs
    worker.close()


def test_cancelled_sequence_frees_its_slot(engine: Engine) -> None:
    worker = Worker(engine, 1, 1, ignore)
    first: queue.Queue[Piece] = queue.Queue()
    second: queue.Queue[Piece] = queue.Queue()
    gate = threading.Event()

    def deliver(piece: Piece) -> None:
        first.put(piece)
        gate.wait(DEADLINE)  # the test is never too slow to cancel the sequence

    long = sequence(engine, "a", deliver, ignore_eos=True, max_tokens=4000)
    worker.submit([long])
    first.get(timeout=DEADLINE)
    worker.submit([sequence(engine, "b", second.put, temperature=0, max_tokens=5)])
    long.cancel()
    gate.set()
    text = "".join(piece.text for piece in pieces(second))
    assert text == "".join(engine.generate("b", temperature=0, max_tokens=5))
    assert first.empty()  # no token after the one before the cancellation
    worker.close()


def test_full_queue_and_errors(engine: Engine) -> None:
    worker = Worker(engine, 1, 0, ignore)
    results: queue.Queue[Piece] = queue.Queue()
    gate = threading.Event()
    long = sequence(engine, "a", lambda _: gate.wait(DEADLINE), max_tokens=4000)
    worker.submit([long])
    other = sequence(engine, "a", results.put)
    with pytest.raises(
        QueueFullError, match="1 of 1 places for sequences are taken, and the request has 1"
    ):
        worker.submit([other])
    long.cancel()
    gate.set()
    worker.close()
    with pytest.raises(UserError, match="stopping"):
        worker.submit([other])
    worker = Worker(engine, 1, 0, ignore)
    with pytest.raises(UserError, match="has 2 sequences, and this server takes at most 1 at a"):
        worker.submit([other, other])
    worker.submit([sequence(engine, "a", results.put, temperature=-1)])
    assert "temperature" in next(pieces(results)).error
    worker.close()


def test_a_client_is_notified_once_a_step(engine: Engine) -> None:
    """Of its sequences only those count whose client waits for each token, or that ended."""
    notified: queue.Queue[list[Any]] = queue.Queue()
    worker = Worker(engine, 4, 0, notified.put)
    streamed, whole = [Choice(0, [], True), Choice(1, [], True)], Choice(0, [], False)
    ids, options = [BOS, *engine.encode("a")], {"ignore_eos": True, "temperature": 0}
    worker.submit(
        [
            *(
                Sequence(ids, make_options(options | {"max_tokens": 3}), each.add, "streamed")
                for each in streamed
            ),
            Sequence(ids, make_options(options | {"max_tokens": 3}), whole.add, "whole"),
        ]
    )
    told = []
    while "whole" not in (told[-1] if told else []):
        told.append(notified.get(timeout=DEADLINE))
    worker.close()
    assert all(len(clients) == len(set(clients)) for clients in told)
    assert all(clients == ["streamed"] for clients in told[:-1])
    assert sorted(told[-1]) == ["streamed", "whole"]
    chunk = whole.take()
    assert chunk
    assert chunk.text == "".join(engine.generate("a", max_tokens=3, **options))
    assert whole.take() is None


def test_a_whole_text_is_taken_once_it_is_complete() -> None:
    choice = Choice(0, [], is_streamed=False)
    assert not choice.add(Piece("ab", 5))
    assert choice.take() is None
    assert choice.add(Piece("c", 6, "max_tokens"))
    assert choice.take() == Chunk(0, "abc", "length")


def test_tokens_behind_a_stop_text_do_not_count() -> None:
    choice = Choice(0, ["cd"], is_streamed=True)
    assert choice.add(Piece("ab", 5))
    assert choice.take() == Chunk(0, "ab")
    assert not choice.add(Piece("c", 6))
    assert choice.take() is None
    assert choice.add(Piece("d", 7))
    assert not choice.add(Piece("e", 8))
    assert choice.take() == Chunk(0, "", "stop")
    assert choice.tokens == 3
    assert not choice.add(Piece("f", 9))
    assert choice.take() is None
