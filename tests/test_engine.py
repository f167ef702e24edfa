"""The C engine from Python: logits equal PyTorch's, and samples are as the header documents."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import engine_files
import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT
from engine_files import (
    BOS,
    EOS,
    FIRST_BYTE,
    small_config,
    torch_logits,
    torch_model,
    word_id,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from storyllamas.config import ModelConfig
from storyllamas.engine.engine import Engine, Story
from storyllamas.engine.ffi import ffi, lib
from storyllamas.engine.options import DEFAULTS
from storyllamas.errors import UserError
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import GROUP_SIZES, Storage

Float32 = npt.NDArray[np.float32]
VOCAB_SIZE = small_config().vocab_size


@pytest.fixture
def small(tmp_path: Path) -> Engine:
    config = small_config()
    return Engine(
        engine_files.write(tmp_path / "m.slm", config, engine_files.random_tensors(config))
    )


# ---- Numbers -------------------------------------------------------------------------------------


@st.composite
def shapes(draw: st.DrawFn) -> ModelConfig:
    kv_heads = draw(st.integers(1, 3))
    return ModelConfig(
        dim=draw(st.integers(8, 70)),  # the norm of one or two numbers blows up rounding errors
        layers=draw(st.integers(1, 3)),
        heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 20)),
        hidden=draw(st.integers(1, 90)),
        context=draw(st.integers(1, 80)),
        vocab_size=draw(st.integers(259, 300)),
        rope_theta=draw(st.sampled_from([100.0, 10000.0, 500000.0])),
        norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        tied=draw(st.booleans()),
    )


@settings(max_examples=60)
@given(config=shapes(), data=st.data())
def test_logits_are_pytorchs(
    config: ModelConfig, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Draw any shape and length: within a chunk, across chunks, up to the end of the context."""
    path = tmp_path_factory.mktemp("shape") / "m.slm"
    tensors = engine_files.random_tensors(config, data.draw(st.integers(0, 99)))
    engine = Engine(engine_files.write(path, config, tensors))
    count = data.draw(st.integers(1, config.context))
    ids = np.random.default_rng(count).integers(0, config.vocab_size, count).tolist()
    expected = torch_logits(torch_model(config, tensors), ids)
    logits = engine.logits(ids)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()

    ids.append(0)
    log_softmax = expected.astype(np.float64)
    log_softmax -= np.log(np.exp(log_softmax).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(
        engine.score(ids), log_softmax[np.arange(count), ids[1:]], rtol=1e-4, atol=1e-3
    )


@settings(max_examples=60)
@given(
    config=shapes(),
    how=engine_files.STORAGES,
    seed=st.integers(0, 99),
)
def test_quantized_logits_are_its_weights_on_rounded_activations(
    config: ModelConfig, how: Storage, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PyTorch with activations rounded to 8 bits, keys and values to float16, gives the same."""
    path = tmp_path_factory.mktemp("quantized") / "m.slm"
    tensors = engine_files.random_tensors(config, seed)
    engine_files.write(path, config, tensors, None, how)
    rounded = dict(weight_file.read(path).tensors())
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, config.context).tolist()
    expected = torch_logits(torch_model(config, rounded), ids)
    difference = Engine(path).logits(ids) - expected
    assert math.sqrt(np.mean(difference**2)) <= 0.05 * np.abs(expected).max()
    assert np.corrcoef(Engine(path).logits(ids).ravel(), expected.ravel())[0, 1] > 0.98


def test_greedy_stories_are_pytorchs(tmp_path: Path) -> None:
    """Every generated token, EOS included, has PyTorch's largest logit."""
    config = small_config(context=60, vocab_size=300, tied=False)
    lengths = []
    for seed in range(20):
        tensors = engine_files.random_tensors(config, seed)
        engine = Engine(engine_files.write(tmp_path / "m.slm", config, tensors))
        prompt = [BOS, 5 + seed, 70]
        generated = engine.greedy(prompt)
        most_probable = torch_logits(torch_model(config, tensors), prompt + generated).argmax(
            axis=1
        )
        assert generated == most_probable[len(prompt) - 1 : -1].tolist()
        assert len(prompt) + len(generated) == config.context or most_probable[-1] in (BOS, EOS)
        lengths.append(len(generated))
    assert max(lengths) == config.context - 3


def test_score_of_unlikely_tokens_is_finite(tmp_path: Path) -> None:
    """Logits thousands apart: the sum is taken relative to the largest."""
    row = np.zeros(VOCAB_SIZE, np.float32)
    row[[5, 6]] = [3000, -3000]
    engine = Engine(engine_files.write_chain(tmp_path / "m.slm", lambda _: row))
    np.testing.assert_allclose(engine.score([BOS, 5, 6, 7]), [0, -6000, -3000], rtol=1e-6)


# ---- Draws ---------------------------------------------------------------------------------------


def random_shares(seed: int) -> Iterator[float]:
    """Yield the numbers of the documented generator: xoshiro256** on four of splitmix64."""
    mask = 2**64 - 1
    state = []
    for _ in range(4):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        state.append(z ^ z >> 31)

    def rotate(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & mask

    while True:
        yield ((rotate(state[1] * 5 & mask, 7) * 9 & mask) >> 11) / 2**53
        shifted = state[1] << 17 & mask
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= shifted
        state[3] = rotate(state[3], 45)


def filtered(
    logits: npt.NDArray[np.float64],
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Ids and probabilities of the tokens that are left, in the order of the draw."""
    shares = np.exp((logits - logits.max()) / temperature)
    if not top_k and top_p == 1 and min_p == 0:
        return np.arange(len(logits)), shares / shares.sum()
    order = np.lexsort((np.arange(len(logits)), -shares))
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        before = np.cumsum(shares[order]) - shares[order]
        order = order[before < top_p * shares[order].sum()]
    order = order[shares[order] >= min_p * shares[order[0]]]
    return order, shares[order] / shares[order].sum()


RULES: list[dict[str, float]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5, "top_k": 5},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.5, "top_p": 0.35},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "top_k": 8, "top_p": 0.7},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.2},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.5, "min_p": 0.2},
    {"temperature": 1.0, "top_p": 0.8, "min_p": 0.02},
]


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, npt.NDArray[np.float64]]:
    """Return a model whose logits are always the same, uneven, and partly equal."""
    row = np.random.default_rng(3).normal(0, 2, VOCAB_SIZE).round(1).astype(np.float32)
    row[[BOS, EOS]] = -50
    path = tmp_path_factory.mktemp("spread") / "m.slm"
    engine = Engine(engine_files.write_chain(path, lambda _: row, context=2000))
    return engine, engine.logits([BOS])[0].astype(np.float64)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_draws_are_those_of_the_header(
    spread: tuple[Engine, npt.NDArray[np.float64]], rules: dict[str, float]
) -> None:
    """Each token is the one that NumPy's filters and the documented generator give."""
    engine, logits = spread
    ids, probabilities = filtered(logits, **rules)  # type: ignore[arg-type]
    ends = np.cumsum(probabilities)
    shares = random_shares(seed=9)
    generated = generate_story(engine, seed=9, max_tokens=1500, **({"top_p": 1.0} | rules)).ids
    assert len(generated) == 1500
    for token in generated:
        share = next(shares)
        if np.abs(ends - share).min() > 1e-6:  # not on the border of two tokens
            assert token == ids[np.searchsorted(ends, share, side="right")]


def generate_story(engine: Engine, prompt: str | list[int] = "", **options: float) -> Story:
    story = engine.generate(prompt, **options)  # type: ignore[arg-type]
    for _ in story:
        pass
    return story


@pytest.mark.parametrize("rules", [RULES[0], RULES[4], RULES[9]], ids=str)
def test_draws_are_spread_as_the_probabilities(
    spread: tuple[Engine, npt.NDArray[np.float64]], rules: dict[str, float]
) -> None:
    """Chi-square over the first draw of many seeds; rare tokens are counted together."""
    engine, logits = spread
    count = 4000
    drawn = Counter(
        generate_story(engine, seed=seed, max_tokens=1, **({"top_p": 1.0} | rules)).ids[0]
        for seed in range(count)
    )
    ids, probabilities = filtered(logits, **rules)  # type: ignore[arg-type]
    assert set(drawn) <= set(ids.tolist())
    expected = count * probabilities
    observed = np.array([drawn[token] for token in ids.tolist()])
    common = expected >= 10
    expected = np.append(expected[common], expected[~common].sum() + 1e-9)
    observed = np.append(observed[common], observed[~common].sum())
    freedom = int(common.sum())
    chi_square = float(((observed - expected) ** 2 / expected)[expected > 1].sum())
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 4  # about one in 30,000


def test_one_number_a_token_and_none_when_greedy(tmp_path: Path) -> None:
    """With two equal tokens, the draw is the generator's first bit."""
    row = np.full(VOCAB_SIZE, -50, np.float32)
    row[[20, 30]] = 1
    engine = Engine(engine_files.write_chain(tmp_path / "m.slm", lambda _: row))
    for seed in (0, 1, 2**64 - 1):
        shares = random_shares(seed)
        expected = [20 if next(shares) < 0.5 else 30 for _ in range(30)]
        assert generate_story(engine, seed=seed, temperature=1, max_tokens=30).ids == expected
    assert generate_story(engine, temperature=0, max_tokens=30).ids == [20] * 30


def test_repetition_penalty(tmp_path: Path) -> None:
    """Positive logits are divided, others multiplied, once for each token of the window."""
    row = np.full(VOCAB_SIZE, -9, np.float32)
    row[[20, 21, 22]] = [4, 3.5, 3]
    engine = Engine(engine_files.write_chain(tmp_path / "m.slm", lambda _: row))
    greedy = {"temperature": 0, "max_tokens": 8, "repetition_penalty": 1.25}
    assert generate_story(engine, [BOS], **greedy, repetition_window=0).ids == [20] * 8
    # 4 / 1.25 < 3.5; then 3.5 / 1.25 < 3 < 4 / 1.25; then the two that are penalized, and 3 / 1.25.
    assert generate_story(engine, [BOS], **greedy).ids == [20, 21, 20, 20, 20, 20, 20, 20]
    assert generate_story(engine, [BOS], **greedy, repetition_window=1).ids == [20, 21] * 4
    assert generate_story(engine, [BOS, 20, 20, 20], **greedy).ids[0] == 21
    row[:] = [-3 if token in (20, 21) else -9 for token in range(VOCAB_SIZE)]
    row[21] = -3.5
    below = Engine(engine_files.write_chain(tmp_path / "n.slm", lambda _: row))
    assert generate_story(below, [BOS], **greedy, repetition_window=1).ids == [20, 21] * 4


@pytest.mark.parametrize("rules", [{}, {"top_p": 1}, {"top_p": 1, "min_p": 0.1}, {"top_k": 5}])
def test_a_penalty_that_overflows_leaves_the_largest(
    tmp_path: Path, rules: dict[str, float]
) -> None:
    row = np.full(VOCAB_SIZE, -9, np.float32)
    row[[20, 21]] = [4, 5]
    engine = Engine(engine_files.write_chain(tmp_path / "m.slm", lambda _: row))
    story = generate_story(
        engine, [BOS, 20], repetition_penalty=1e-38, temperature=1, max_tokens=4, **rules
    )
    assert story.ids == [20] * 4


@pytest.mark.parametrize("rules", [{}, {"temperature": 0}, {"temperature": 3, "top_k": 7}])
def test_logprobs_are_those_of_the_logits(small: Engine, rules: dict[str, float]) -> None:
    """Neither temperature nor penalty changes them, and they do not change the story."""
    chosen = {"max_tokens": 12, "repetition_penalty": 1.5, "ignore_eos": True, **rules}
    prompt = [BOS, 20, 21]
    story = generate_story(small, prompt, logprobs=4, **chosen)
    assert story.ids == generate_story(small, prompt, **chosen).ids
    logits = small.logits(prompt + story.ids)[len(prompt) - 1 :].astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    assert [each.id for each in story.logprobs] == story.ids
    for row, each in zip(logprobs, story.logprobs, strict=False):
        best = np.argsort(-row, kind="stable")[:4]
        assert [id for id, _ in each.top] == best.tolist()
        assert [value for _, value in each.top] == pytest.approx(row[best], abs=1e-5)
        assert each.logprob == pytest.approx(row[each.id], abs=1e-5)


def test_among_equal_logprobs_lower_ids_come_first(tmp_path: Path) -> None:
    config = small_config()
    tensors = {name: 0 * tensor for name, tensor in engine_files.random_tensors(config).items()}
    engine = Engine(engine_files.write(tmp_path / "m.slm", config, tensors))
    (first,) = generate_story(engine, [BOS], logprobs=20, max_tokens=1, ignore_eos=True).logprobs
    assert [id for id, _ in first.top] == list(range(20))
    assert first.logprob == pytest.approx(-math.log(VOCAB_SIZE), abs=1e-6)


def test_same_seed_same_story(small: Engine) -> None:
    def generated(seed: int) -> list[int]:
        return generate_story(small, temperature=1, seed=seed).ids

    assert generated(5) == generated(5)
    assert len({tuple(generated(seed)) for seed in range(20)}) > 10


# ---- Stories -------------------------------------------------------------------------------------


def test_stops(tmp_path: Path) -> None:
    path = tmp_path / "m.slm"
    words = [word_id(0), word_id(1), word_id(2)]
    engine = Engine(engine_files.write_sequence(path, [BOS, *words, EOS]))
    story = engine.generate("")
    assert ("".join(story), story.stop, story.ids) == ("abab", "eos", words)
    assert (story.prompt_tokens, story.tokens) == (1, 3)
    story = generate_story(engine, "", max_tokens=2)
    assert (story.stop, story.ids) == ("max_tokens", words[:2])
    story = generate_story(engine, [BOS, words[0]], max_tokens=2)
    assert (story.stop, story.ids, story.prompt_tokens) == ("max_tokens", words[1:], 2)
    engine = Engine(engine_files.write_sequence(path, [9, *words, BOS]))
    assert generate_story(engine, [9]).stop == "bos"
    engine = Engine(engine_files.write_sequence(path, [BOS, *words, EOS], context=3))
    story = generate_story(engine)
    assert (story.stop, story.ids) == ("context", words[:2])
    assert generate_story(engine, [9, 9, 9]).tokens == 0
    story = generate_story(engine, ignore_eos=True, max_tokens=100)
    assert story.stop == "context"


def test_ignoring_the_end(tmp_path: Path) -> None:
    engine = Engine(engine_files.write_sequence(tmp_path / "m.slm", [BOS, EOS, 9, 10, 11]))
    assert generate_story(engine, temperature=0, max_tokens=3).stop == "eos"
    assert generate_story(engine, temperature=0, max_tokens=3, ignore_eos=True).ids == [EOS, 9, 10]


def byte_ids(raw: bytes) -> list[int]:
    return [FIRST_BYTE + value for value in raw]


def test_split_characters_come_whole(tmp_path: Path) -> None:
    story = [BOS, *byte_ids("🙂".encode()), word_id(0), *byte_ids(b"\xe6\x97"), EOS]
    engine = Engine(engine_files.write_sequence(tmp_path / "m.slm", story))
    assert list(engine.generate("")) == ["🙂", "a", "\ufffd\ufffd"]
    assert list(engine.generate("", max_tokens=3)) == ["\ufffd" * 3]
    assert list(engine.generate([BOS, *story[1:3]])) == ["🙂", "a", "\ufffd\ufffd"]


def test_broken_bytes_are_generated_as_soon_as_they_are_certain(tmp_path: Path) -> None:
    story = [BOS, *byte_ids(b"\xff"), *byte_ids(b"\xe2\x28"), *byte_ids(b"\xf0\x9f\x41"), EOS]
    engine = Engine(engine_files.write_sequence(tmp_path / "m.slm", story))
    assert list(engine.generate("")) == ["\ufffd", "\ufffd(", "\ufffd\ufffdA"]


def test_the_dummy_prefix_goes_once(tmp_path: Path) -> None:
    story = [BOS, word_id(4), word_id(3), word_id(0), EOS]  # "▁a", "▁", "a"
    engine = Engine(engine_files.write_sequence(tmp_path / "m.slm", story))
    assert "".join(engine.generate("")) == "a a"
    assert "".join(engine.generate("a")) == " a"


def test_empty_and_full_prompts(small: Engine) -> None:
    assert generate_story(small, "", max_tokens=3).prompt_tokens == 1
    fits = "b" * (small.context - 2)  # and BOS, and the dummy prefix
    assert generate_story(small, fits).stop == "context"
    with pytest.raises(
        UserError, match="the prompt has 41 tokens and the model's context is 40: give a shorter"
    ):
        small.generate(fits + "b")
    with pytest.raises(UserError, match="the prompt has 100002 tokens and the model's context"):
        small.generate("b" * 100_000)
    with pytest.raises(UserError, match="the prompt has 41 tokens"):
        small.generate([5] * 41)
    with pytest.raises(UserError, match="the prompt has no tokens"):
        small.generate([])


def test_closing_early_frees_the_session_for_the_next_story(small: Engine) -> None:
    story = small.generate("a", temperature=1)
    next(story)
    generated = story.tokens
    story.close()
    story.close()
    assert list(story) == []
    assert (story.stop, story.tokens) == ("", generated)
    assert len(small._idle) == 1
    assert (
        generate_story(small, "a", temperature=1).ids
        == generate_story(small, "a", temperature=1).ids
    )


def test_stories_side_by_side(small: Engine) -> None:
    """Stories interleaved in one thread, or each in its own, equal those generated one by one."""
    alone = [generate_story(small, temperature=1, seed=seed).ids for seed in range(8)]
    stories = [small.generate("", temperature=1, seed=seed) for seed in range(8)]
    running = list(stories)
    while running:
        running = [story for story in running if next(story, None) is not None]
    assert [story.ids for story in stories] == alone

    found: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        for _ in range(20):
            found[seed] = generate_story(small, temperature=1, seed=seed).ids
            small.score([BOS, 5, 6, 7])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(8)] == alone


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1}, "temperature is -1 and must be 0 (greedy) to 1000"),
        ({"temperature": math.nan}, "temperature is nan and must be"),
        ({"temperature": math.inf}, "temperature is inf and must be"),
        ({"temperature": "hot"}, "temperature is 'hot' and must be a number"),
        ({"top_k": -1}, "top_k is -1 and must be 0 (off) or more"),
        (
            {"top_k": 2**40},
            "top_k is 1099511627776 and must be a whole number from 0 to 2147483647",
        ),
        ({"top_p": 0}, "top_p is 0 and must be above 0 and at most 1 (off)"),
        ({"top_p": 1.1}, "top_p is 1.1 and must be above 0"),
        ({"min_p": 1}, "min_p is 1 and must be at least 0 (off) and below 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0 and must be above 0"),
        ({"repetition_window": -1}, "repetition_window is -1 and must be 0 or more"),
        ({"max_tokens": 0}, "max_tokens is 0 and must be 1 or more"),
        ({"logprobs": -1}, "logprobs is -1 and must be 0 (off) to 20"),
        ({"logprobs": 21}, "logprobs is 21 and must be 0 (off) to 20"),
        ({"seed": -1}, "seed is -1 and must be a whole number from 0 to 18446744073709551615"),
    ],
)
def test_options_out_of_range(small: Engine, options: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError) as rejection:
        small.generate("a", **options)  # type: ignore[arg-type]
    assert str(rejection.value).startswith(sentence)


def test_ids_out_of_range(small: Engine) -> None:
    for call in (small.logits, small.score, small.greedy):
        for bad in (-1, VOCAB_SIZE):
            with pytest.raises(
                UserError,
                match=f"token id {bad} is not in the vocabulary: give 0 to {VOCAB_SIZE - 1}",
            ):
                call([BOS, bad])
    for bad_ids in ([BOS, 2**32 + 5], np.array([BOS, 2**32 + 5]), [BOS, 2**63], [BOS, 1.5]):
        with pytest.raises(UserError, match="a token id is not a whole number of 32 bits"):
            small.score(bad_ids)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="0 tokens are given and must be 1 to 40"):
        small.logits([])
    with pytest.raises(UserError, match="41 tokens are given and must be 1 to 40"):
        small.logits([1] * 41)
    for count in (0, 1, 42):
        with pytest.raises(UserError, match=f"{count} tokens are given to score and must be 2"):
            small.score([1] * count)


def test_output_that_is_not_finite(tmp_path: Path) -> None:
    """Weights so large that the product of gate and up overflows."""
    config = small_config()
    tensors = engine_files.random_tensors(config)
    tensors["layers.1.feed_forward.gate_up.weight"] *= np.float32(1e30)
    for weight_type in GROUP_SIZES:
        path = engine_files.write(tmp_path / "m.slm", config, tensors, None, weight_type)
        engine = Engine(path)
        for call in (engine.logits, engine.score, engine.greedy):
            with pytest.raises(UserError, match="the model's logits are not finite"):
                call([BOS, 5, 6])


# ---- The callback, which Python does not use -----------------------------------------------------


def test_generate_calls_back(small: Engine) -> None:
    expected = generate_story(small, "a", temperature=1)
    session = ffi.new("sl_session **")
    assert lib.sl_session_new(session, small._model, ffi.NULL) == lib.SL_OK
    options = lib.sl_defaults()
    options.temperature = 1
    stop = ffi.new("int32_t *")

    def generate(most: int) -> list[int]:
        ids: list[int] = []

        @ffi.callback("int(void *, const sl_piece *)")
        def collect(_: object, piece: object) -> int:
            ids.append(piece.id)  # type: ignore[attr-defined]
            return len(ids) == most

        arguments = (b"a", 1, ffi.addressof(options), collect, ffi.NULL, stop)
        assert lib.sl_generate(session[0], *arguments) == lib.SL_OK
        return ids

    generated = generate(most=-1)
    assert generated[: len(expected.ids)] == expected.ids
    assert ffi.string(lib.sl_stop_name(stop[0])).decode() == expected.stop
    assert generate(most=3) == expected.ids[:3]
    assert stop[0] == lib.SL_STOP_CALLBACK
    lib.sl_session_free(session[0])


# ---- Files, defaults, building -------------------------------------------------------------------


def test_info(small: Engine, tmp_path: Path) -> None:
    config = small_config()
    expected = {name: getattr(config, name) for name in config.__dataclass_fields__}
    expected |= {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "group_size": 0}
    expected |= {"parameters": config.parameters, "weight_type": "f32"}
    expected |= {"embedding_type": "f32", "embedding_group_size": 0}
    assert expected.items() <= small.info.items()
    assert small.info["file_bytes"] == (tmp_path / "m.slm").stat().st_size
    tensors, sizes = engine_files.random_tensors(config), {"q4": 16}
    q4 = Engine(engine_files.write(tmp_path / "q4.slm", config, tensors, None, "q4", sizes))
    expected = {"weight_type": "q4", "group_size": 16}
    expected |= {"embedding_type": "q4", "embedding_group_size": 16}
    assert expected.items() <= q4.info.items()


def test_defaults_are_the_headers(spread: tuple[Engine, object]) -> None:
    header = (ROOT / "csrc" / "storyllamas.h").read_text()
    macro = header.split("#define SL_OPTIONS_DEFAULTS")[1].split("}")[0]
    written = {name: float(value) for name, value in re.findall(r"\.(\w+) = ([\d.]+)", macro)}
    assert written == DEFAULTS
    engine, _ = spread
    given = {name: value for name, value in DEFAULTS.items() if name != "ignore_eos"}
    assert generate_story(engine).ids == generate_story(engine, **given).ids


@pytest.mark.usefixtures("quick_compiler")
def test_builds_in_place_when_it_must(tmp_path: Path) -> None:
    """As in a fresh clone: the module is missing, then up to date, then older than a source."""
    for name in ("storyllamas", "csrc"):
        ignored = shutil.ignore_patterns("_engine.*", "build", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    def build() -> int:
        done = run("-m", "storyllamas.engine.build")
        assert done.returncode == 0, done.stderr
        (module,) = (tmp_path / "storyllamas").glob("_engine.*")
        return module.stat().st_mtime_ns

    hide = "import sys; sys.modules['storyllamas._engine'] = None"
    missing = run("-c", f"{hide}; import storyllamas.engine.engine")
    assert "the C engine is not built: run `python -m storyllamas.engine.build`" in missing.stderr
    # A module for one version of Python would be loaded in place of the one that is built.
    stale = tmp_path / "storyllamas" / f"_engine{EXTENSION_SUFFIXES[0]}"
    stale.touch()
    os.utime(stale, (0, 0))
    first = build()
    assert run("-c", "from storyllamas import _engine as e; print(e.__file__)").stdout.startswith(
        str(tmp_path)
    )
    assert build() == first
    (tmp_path / "csrc" / "sampler.c").touch()
    assert build() > first
    (tmp_path / "csrc" / "sampler.c").write_text("not C")
    broken = run("-m", "storyllamas.engine.build")
    assert broken.returncode == 1
    assert broken.stderr.splitlines()[-1].startswith("error: the C engine cannot be built: ")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("storyllamas", "csrc", "setup.py", "pyproject.toml", "LICENSE")
    }
