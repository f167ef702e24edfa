"""Batched generation: each story equals the one that is generated alone."""

from __future__ import annotations

import dataclasses
import gc
import random
from collections.abc import Iterator
from itertools import chain, count, islice, repeat
from pathlib import Path

import engine_files
import pytest

from storyllamas.config import ModelConfig
from storyllamas.engine.batch import GeneratedStory
from storyllamas.engine.engine import Engine
from storyllamas.engine.ffi import ffi, lib
from storyllamas.errors import UserError

CONFIG = ModelConfig(
    dim=48, layers=2, heads=4, kv_heads=2, head_dim=12, hidden=80, context=70, vocab_size=300
)
OPTIONS: list[dict[str, float]] = [
    {},
    {"temperature": 0},
    {"temperature": 1.5, "top_p": 1},
    {"temperature": 1, "top_k": 20, "min_p": 0.05, "max_tokens": 9},
    {"temperature": 1.2, "repetition_penalty": 1.3, "repetition_window": 8, "ignore_eos": True},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("many")
    tensors = engine_files.random_tensors(CONFIG, 5)
    tensors["norm.weight"] *= 0.4  # less certain, so that stories end at different lengths
    sizes = {"q8": 16, "q4": 16}
    return {
        name: engine_files.write(folder / f"{name}.slm", CONFIG, tensors, None, name, sizes)
        for name in ("f32", "q8", "q4")
    }


@pytest.fixture(scope="module")
def engine(files: dict[str, Path]) -> Engine:
    return Engine(files["f32"])


def alone(engine: Engine, index: int, prompt: str, seed: int, **options: float) -> GeneratedStory:
    story = engine.generate(prompt, seed=seed, **options)  # type: ignore[arg-type]
    text = prompt + "".join(story)
    return GeneratedStory(index, seed, prompt, text, story.ids, story.stop)


def make_prompts(number: int) -> list[str]:
    """Return prompts of many lengths; some need more than one pass next to other sequences."""
    lengths = random.Random(number)
    return ["ab é "[: lengths.randrange(6)] * lengths.randrange(1, 9) for _ in range(number)]


@pytest.mark.parametrize("name", ["f32", "q8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_prefetched_caches_change_no_story(tmp_path: Path, name: str, threads: int) -> None:
    """All caches together exceed the processor cache, so they are prefetched (transformer.c)."""
    config = dataclasses.replace(CONFIG, context=4096)
    tensors = engine_files.random_tensors(config, 6)
    path = engine_files.write(tmp_path / "far.slm", config, tensors, None, name, {"q8": 16})
    prompts = make_prompts(48)
    engine = Engine(path, threads=threads)
    expected = [alone(engine, i, text, 7 + i, max_tokens=40) for i, text in enumerate(prompts)]
    assert list(engine.generate_many(prompts, seed=7, batch_size=48, max_tokens=40)) == expected


@pytest.mark.parametrize("name", ["f32", "q8", "q4"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_is_the_story_that_it_is_alone(
    files: dict[str, Path], name: str, options: dict[str, float]
) -> None:
    prompts = make_prompts(41)
    single = Engine(files[name], threads=1)
    expected = [alone(single, i, text, 100 + i, **options) for i, text in enumerate(prompts)]
    assert len({story.tokens for story in expected}) > 1 or "max_tokens" in options
    for batch_size, threads in ((1, 1), (2, 2), (7, 1), (16, 3), (256, 2)):
        engine = Engine(files[name], threads=threads)
        generated = list(engine.generate_many(prompts, batch_size=batch_size, seed=100, **options))
        assert generated == expected


@pytest.mark.parametrize("name", ["f32", "q8", "q4"])
def test_slots_are_started_and_freed_at_any_time(files: dict[str, Path], name: str) -> None:
    """In C, start sequences at random steps, also in the slot of a running sequence."""
    engine, choose = Engine(files[name], threads=2), random.Random(8)
    slots = 6
    handle, options = ffi.new("sl_session **"), ffi.new("sl_session_options *", (2, slots))
    assert lib.sl_session_new(handle, engine._model, options) == lib.SL_OK
    session = ffi.gc(handle[0], lib.sl_session_free)
    pieces = ffi.new("sl_piece[]", slots)
    generated: list[list[int] | None] = [None] * slots
    seeds, next_seed, compared = [0] * slots, count(1), 0

    def expected(slot: int) -> list[int]:
        return alone(engine, 0, "ab", seeds[slot], temperature=1.3).ids

    for _ in range(300):
        for slot in range(slots):
            if choose.random() < (0.3 if generated[slot] is None else 0.01):
                how = lib.sl_defaults()
                how.temperature, how.seed = 1.3, next(next_seed)
                assert lib.sl_start_slot(session, slot, b"ab", 2, ffi.addressof(how)) == lib.SL_OK
                generated[slot], seeds[slot] = [], how.seed
        assert lib.sl_step(session, pieces) == lib.SL_OK
        for slot, ids in enumerate(generated):
            if ids is None:
                assert pieces[slot].stop != lib.SL_RUNNING
            elif pieces[slot].stop:
                assert ids == expected(slot)
                generated[slot], compared = None, compared + 1
            else:
                ids.append(pieces[slot].id)
    assert compared > 20
    for slot, ids in enumerate(generated):
        if ids:
            assert ids == expected(slot)[: len(ids)]


def test_each_prompt_is_generated_count_times(engine: Engine) -> None:
    generated = list(engine.generate_many(["a", "b"], count=3, max_tokens=4))
    assert [(story.index, story.prompt, story.seed) for story in generated] == [
        (i, "aaabbb"[i], 42 + i) for i in range(6)
    ]
    assert list(engine.generate_many("a", count=3, max_tokens=4)) == generated[:3]
    assert list(engine.generate_many([])) == []
    (empty,) = engine.generate_many()
    assert empty == alone(engine, 0, "", 42)


def test_prompts_are_taken_as_they_are_needed(engine: Engine) -> None:
    """Neither stories nor prompts pile up, also where the first story is the longest."""
    taken = 0

    def prompts() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield ""

    stories = engine.generate_many(prompts(), batch_size=2, temperature=1)
    for story in islice(stories, 200):
        assert taken <= story.index + 2 * 16 + 2 + 2
    assert taken < 250
    stories.close()  # type: ignore[attr-defined]


def test_short_stories_wait_for_a_long_one(tmp_path: Path) -> None:
    """The first story fills the context; the number of finished stories behind it is bounded."""
    config = dataclasses.replace(CONFIG, context=400)
    path = engine_files.write(tmp_path / "m.slm", config, engine_files.random_tensors(config, 5))
    engine, taken = Engine(path), 0
    nearly_full = "é" * 396
    assert 390 < len(engine.encode(nearly_full)) < config.context

    def prompts() -> Iterator[str]:
        nonlocal taken
        for prompt in chain([""], repeat(nearly_full)):
            taken += 1
            yield prompt

    stories = engine.generate_many(prompts(), batch_size=2, ignore_eos=True, max_tokens=400)
    assert next(iter(stories)).stop == "context"
    assert 2 * 16 <= taken <= 2 * 16 + 2
    stories.close()  # type: ignore[attr-defined]


def test_stories_keep_their_model(files: dict[str, Path]) -> None:
    stories = Engine(files["q8"]).generate_many("a", count=3)
    gc.collect()
    assert len(list(stories)) == 3


def test_seeds_begin_again_after_the_last(engine: Engine) -> None:
    generated = list(engine.generate_many("a", count=2, seed=2**64 - 1, max_tokens=3))
    assert [story.seed for story in generated] == [2**64 - 1, 0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompts": ["a", "b", "a" * 200]}, "story 2: the prompt has"),
        ({"prompts": ["a", "\udcff"]}, "story 1: the text is not valid Unicode"),
        ({"count": 0}, "count is 0 and must be 1 to"),
        ({"batch_size": 0}, "batch_size is 0 and must be 1 to 256"),
        ({"batch_size": 257}, "batch_size is 257 and must be 1 to 256"),
        ({"temperature": -1}, "temperature is -1 and must be 0 (greedy) to 1000"),
        ({"seed": 2**64}, "seed is 18446744073709551616 and must be a whole number from 0 to 1844"),
    ],
)
def test_what_cannot_be_generated(engine: Engine, arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError) as rejection:
        list(engine.generate_many(**arguments))
    assert str(rejection.value).startswith(sentence)


def test_options_are_checked_before_the_first_story(engine: Engine) -> None:
    with pytest.raises(UserError, match="top_p is 0 and"):
        engine.generate_many("a", top_p=0)
    with pytest.raises(TypeError, match=r"'heat' is not an option: use one of .*temperature"):
        engine.generate_many("a", heat=1)
