"""Types of the key-value cache: what is generated from f16 and 8-bit keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_files
import numpy as np
import numpy.typing as npt
import pytest
import torch

from storyllamas import model as torch_model
from storyllamas.cli import main
from storyllamas.config import ModelConfig
from storyllamas.engine.engine import CACHES, Engine, kernel_sets
from storyllamas.engine.ffi import check, ffi, lib
from storyllamas.engine.sequence import CachedSequence
from storyllamas.errors import UserError

Float32 = npt.NDArray[np.float32]

CONFIG = ModelConfig(
    dim=72, layers=3, heads=6, kv_heads=2, head_dim=20, hidden=150, context=150, vocab_size=300
)
IDS = np.random.default_rng(3).integers(3, CONFIG.vocab_size, CONFIG.context).tolist()
SHAPES = [
    CONFIG,
    ModelConfig(  # a head is a whole tile, one position more than whole tiles
        dim=64, layers=2, heads=4, kv_heads=4, head_dim=16, hidden=90, context=81, vocab_size=270
    ),
    ModelConfig(  # the narrowest heads
        dim=40, layers=2, heads=6, kv_heads=3, head_dim=2, hidden=30, context=50, vocab_size=270
    ),
    ModelConfig(
        dim=50, layers=1, heads=3, kv_heads=1, head_dim=34, hidden=40, context=33, vocab_size=270
    ),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return engine_files.write_types(tmp_path_factory.mktemp("cache"), CONFIG)


def rms(x: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(x.astype(np.float64) ** 2)))


# ---- Numbers -------------------------------------------------------------------------------------


def to_f16(x: torch.Tensor) -> torch.Tensor:
    return x.half().float()


def to_q8(x: torch.Tensor) -> torch.Tensor:
    """Round each head [..., head_dim] to 8-bit multiples of its largest magnitude over 127."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-127, 127) * scale


@pytest.mark.parametrize(("cache", "rounded"), [("f16", to_f16), ("q8", to_q8)])
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"head_dim {config.head_dim}")
def test_logits_are_pytorchs_with_rounded_keys_and_values(
    config: ModelConfig,
    cache: str,
    rounded: Callable[[torch.Tensor], torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A number between two integers may fall to the other side, so a few logits differ a little."""
    tensors = engine_files.random_tensors(config, 5)
    path = engine_files.write(tmp_path / "m.slm", config, tensors)
    ids = np.random.default_rng(7).integers(0, config.vocab_size, config.context).tolist()
    exact = engine_files.torch_logits(engine_files.torch_model(config, tensors), ids)
    attend = torch_model.attend
    monkeypatch.setattr(torch_model, "attend", lambda q, k, v: attend(q, rounded(k), rounded(v)))
    expected = engine_files.torch_logits(engine_files.torch_model(config, tensors), ids)
    logits = Engine(path, cache=cache).logits(ids)
    assert rms(logits - expected) <= 0.25 * rms(expected - exact)


@pytest.mark.parametrize(("head_dim", "quantized"), [(62, "f16"), (64, "q8")])
def test_automatic_suits_weights_and_heads(head_dim: int, quantized: str, tmp_path: Path) -> None:
    files = engine_files.write_types(tmp_path, dataclasses.replace(CONFIG, head_dim=head_dim))
    for name, expected in (("f32", "f32"), ("q8", quantized), ("q4", quantized)):
        logits = {cache: Engine(files[name], cache=cache).logits(IDS) for cache in CACHES}
        assert (Engine(files[name]).logits(IDS) == logits["auto"]).all()
        assert [cache for cache in CACHES if (logits[cache] == logits["auto"]).all()] == [
            "auto",
            expected,
        ]


@pytest.mark.parametrize("name", ["f32", "q8", "q4"])
def test_bits_per_byte_differ_by_less_than_a_tenth_of_a_percent(
    files: dict[str, Path], name: str
) -> None:
    """Score what the model itself generates, so that it is as certain as with a text it knows."""
    engine = Engine(files[name], cache="f32")
    texts = []
    for seed in range(20):
        story = engine.generate([1, 5], temperature=1, top_p=1, seed=seed, ignore_eos=True)
        assert list(story)
        texts.append([1, 5, *story.ids])
    scores = {
        cache: sum(Engine(files[name], cache=cache).score(ids).sum() for ids in texts)
        for cache in ("f32", "q8")
    }
    assert abs(scores["q8"] / scores["f32"] - 1) < 1e-3


@pytest.mark.parametrize("kernels", kernel_sets()[:-1])
@pytest.mark.parametrize("name", ["f32", "q8", "q4"])
def test_kernel_sets_agree(files: dict[str, Path], name: str, kernels: str) -> None:
    reference = Engine(files[name], kernels="scalar", threads=1, cache="q8").logits(IDS)
    logits = Engine(files[name], kernels=kernels, cache="q8").logits(IDS)
    bound = 5e-3 if name == "f32" else 3e-2  # a rounded number may fall to the other side
    assert np.abs(logits - reference).max() <= bound * np.abs(reference).max()


# ---- Bit-identical results -----------------------------------------------------------------------


def new_session(engine: Engine, **options: int) -> Any:
    """Make a session of the C API, with one thread and one slot unless the options say other."""
    handle = ffi.new("sl_session **")
    chosen = ffi.new("sl_session_options *", {"threads": 1, "slots": 1} | options)
    if lib.sl_session_new(handle, engine._model, chosen):
        raise UserError(ffi.string(lib.sl_error()).decode())
    return ffi.gc(handle[0], lib.sl_session_free)


def logits_of(engine: Engine, session: Any) -> Float32:
    logits = np.empty((len(IDS), CONFIG.vocab_size), np.float32)
    pointer = ffi.from_buffer("float[]", logits)
    assert lib.sl_logits(session, IDS, len(IDS), pointer) == lib.SL_OK
    return logits


@pytest.mark.parametrize("cache", ["f32", "f16", "q8"])
@pytest.mark.parametrize("kernels", kernel_sets())
def test_threads_and_chunks_change_no_bit(files: dict[str, Path], cache: str, kernels: str) -> None:
    engine = Engine(files["q8"], kernels=kernels, cache=cache)
    whole = engine.logits(IDS)
    for chunk, threads, slots in ((1, 1, 1), (7, 3, 1), (16, 2, 5), (1024, 1, 200)):
        options = {"cache": CACHES[cache], "chunk": chunk, "threads": threads, "slots": slots}
        assert (logits_of(engine, new_session(engine, **options)) == whole).all()


@pytest.mark.parametrize("name", ["f32", "q8"])
def test_batches_are_the_stories_that_they_are_alone(files: dict[str, Path], name: str) -> None:
    prompts = ["ab é "[: i % 6] * (i % 9) for i in range(24)]
    alone = Engine(files[name], threads=1, cache="q8")
    expected = []
    for i, prompt in enumerate(prompts):
        story = alone.generate(prompt, seed=50 + i)
        expected.append((prompt + "".join(story), story.ids))
    for batch_size, threads in ((5, 1), (24, 3)):
        batch = Engine(files[name], threads=threads, cache="q8")
        stories = batch.generate_many(prompts, batch_size=batch_size, seed=50)
        assert [(story.text, story.ids) for story in stories] == expected


def test_a_full_context(files: dict[str, Path]) -> None:
    """Each token up to the last position is the most probable one of a single pass."""
    engine = Engine(files["f32"], cache="q8")
    story = engine.generate(IDS[:3], temperature=0, max_tokens=10**6, ignore_eos=True)
    assert list(story)
    ids = IDS[:3] + story.ids
    assert (story.stop, len(ids)) == ("context", CONFIG.context)
    assert engine.logits(ids)[2:-1].argmax(axis=1).tolist() == story.ids


@pytest.mark.parametrize("context", [1, 16, 33, 150])
def test_a_shorter_context(files: dict[str, Path], context: int) -> None:
    """The positions that there are have the logits of the whole context."""
    engine = Engine(files["q8"], cache="q8")
    options = {"cache": CACHES["q8"], "slots": 2, "chunk": 8}
    session = new_session(engine, **options, context=context)
    logits = np.empty((context, CONFIG.vocab_size), np.float32)
    pointer = ffi.from_buffer("float[]", logits)
    check(lib.sl_logits(session, IDS, context, pointer))
    assert (logits == engine.logits(IDS[:context])).all()

    sampling = ffi.new("sl_options *", lib.sl_defaults())
    sampling.temperature, sampling.max_tokens, sampling.ignore_eos = 0, 1000, 1
    pieces, ids = ffi.new("sl_piece[2]"), IDS[:1]
    check(lib.sl_start_slot_ids(session, 1, ids, 1, sampling))
    while pieces[1].stop != lib.SL_STOP_CONTEXT:
        check(lib.sl_step(session, pieces))
        ids.extend([pieces[1].id] if pieces[1].id >= 0 else [])
    assert len(ids) == context
    story = engine.generate(IDS[:1], temperature=0, max_tokens=10**6, ignore_eos=True)
    assert list(story)
    assert ids == [*IDS[:1], *story.ids][:context]


def test_more_than_a_shorter_context_is_an_error(files: dict[str, Path]) -> None:
    engine, sampling = Engine(files["q8"]), ffi.new("sl_options *", lib.sl_defaults())
    session = new_session(engine, context=20)
    logits, scores = ffi.new("float[]", 21 * CONFIG.vocab_size), ffi.new("double[]", 22)
    with pytest.raises(UserError, match="has 21 tokens and the session's context is 20: give"):
        check(lib.sl_start_ids(session, IDS, 21, sampling))
    with pytest.raises(UserError, match="has 22 tokens and the session's context is 20: give"):
        check(lib.sl_start(session, b"b" * 20, 20, sampling))
    with pytest.raises(UserError, match="21 tokens are given and must be 1 to 20"):
        check(lib.sl_logits(session, IDS, 21, logits))
    with pytest.raises(UserError, match="22 tokens are given to score and must be 2 to 21"):
        check(lib.sl_score(session, IDS, 22, scores))


def test_a_resumed_sequence(files: dict[str, Path]) -> None:
    engine = Engine(files["q8"], cache="q8")
    cached = CachedSequence(engine)
    for end in (5, 40, 23, 100):
        text = "".join(cached.generate(IDS[:end], seed=9, max_tokens=20))
        assert text == "".join(engine.generate(IDS[:end], seed=9, max_tokens=20))
    assert cached.reused == 23


# ---- Errors --------------------------------------------------------------------------------------


def test_options_out_of_range(files: dict[str, Path]) -> None:
    engine = Engine(files["f32"])
    for cache in (len(CACHES), 2**32 - 1):
        with pytest.raises(UserError, match=f"cache is {cache} and must be one of SL_CACHE_…"):
            new_session(engine, cache=cache)
    for chunk in (1025, 2**32 - 1):
        with pytest.raises(UserError, match=rf"chunk is {chunk} and must be 0 \(auto.*\) to 1024"):
            new_session(engine, chunk=chunk)
    with pytest.raises(UserError, match="cache is 'q4' and must be one of auto, f32, f16, q8"):
        Engine(files["f32"], cache="q4")
    with pytest.raises(
        UserError, match=r"context is 151 and must be 0 \(auto.*\) to 150, the model"
    ):
        new_session(engine, context=151)


def test_numbers_that_are_not_finite_are_found(tmp_path: Path) -> None:
    """No 8-bit integer stands for infinity or NaN, so the scale does."""
    config = engine_files.small_config()
    tensors = engine_files.random_tensors(config)
    tensors["layers.0.attention.qkv.weight"] *= 1e30
    tensors["layers.0.attention_norm.weight"] *= 1e30
    path = engine_files.write(tmp_path / "m.slm", config, tensors)
    for cache in ("f32", "q8"):
        with pytest.raises(UserError, match="the model's logits are not finite"):
            Engine(path, cache=cache).logits([5, 6, 7])


def test_the_command_line(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--model", str(files["f32"]), "--prompt", "ab", "--seed", "4"]
    texts = {}
    for cache in ("f32", "q8"):
        expected = "ab" + "".join(Engine(files["f32"], cache=cache).generate("ab", seed=4))
        with pytest.raises(SystemExit, match="0"):
            main([*command, "--cache", cache])
        texts[cache] = capsys.readouterr().out
        assert texts[cache] == expected + "\n"
    assert texts["f32"] != texts["q8"]
