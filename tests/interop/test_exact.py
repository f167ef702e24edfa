"""Other programs compute the same logits on exported models as PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from random_models import configs, make_config, make_source
from random_texts import is_long_assigned, random_texts
from runtimes import (
    CEngine,
    Llama2c,
    Llama2cInt8,
    LlamaCpp,
    PyTorch,
    Transformers,
    difference,
    greedy,
    requires,
)

from storyllamas import tokenizer
from storyllamas.config import ModelConfig
from storyllamas.corpus import files
from storyllamas.engine.engine import Engine
from storyllamas.interop.formats import export_model, import_model
from storyllamas.interop.model import InteropModel
from storyllamas.slm import weight_file
from storyllamas.vocabulary import SPACE, TokenizerKind, TrainableKind

FLOAT32 = 1e-4

# Shrinking a failure would take minutes.
EXACT = settings(max_examples=25, phases=[Phase.explicit, Phase.generate])


def run_exported(
    folder: Path, config: ModelConfig, seed: int, runtime: type, name: str
) -> tuple[object, PyTorch]:
    """Open an export of a random model in a runtime, and the same export, imported, in PyTorch."""
    theirs = folder / name
    export_model(make_source(config, seed), name, theirs)
    path = {"gguf": theirs / "model.gguf", "llama": theirs / "model.bin"}.get(name[:5].strip("-"))
    import_model(path or theirs, folder / "back.slm")
    return runtime(theirs), PyTorch(folder / "back.slm")


def check_exact(folder: Path, config: ModelConfig, seed: int, runtime: type, name: str) -> None:
    other, reference = run_exported(folder, config, seed, runtime, name)
    ids = np.random.default_rng(seed).integers(3, config.vocab_size, config.context - 4).tolist()
    assert difference(other.logits(ids), reference.logits(ids)) < FLOAT32
    assert greedy(other, ids[:2], 5) == greedy(reference, ids[:2], 5)


def check_rounded(
    folder: Path, config: ModelConfig, runtime: type, name: str, allowed: float
) -> None:
    """Check the difference that the rounding of activations makes; the weights are equal."""
    other, reference = run_exported(folder, config, 1, runtime, name)
    ids = np.random.default_rng(1).integers(3, config.vocab_size, config.context).tolist()
    assert difference(other.logits(ids), reference.logits(ids)) < allowed


@EXACT
@given(config=configs(), seed=st.integers(0, 1000))
def test_the_c_engine(tmp_path_factory: pytest.TempPathFactory, config, seed) -> None:
    path = tmp_path_factory.mktemp("c") / "model.slm"
    source = make_source(config, seed)
    ids = np.random.default_rng(seed).integers(3, config.vocab_size, config.context - 4).tolist()
    weight_file.write(path, config, source.vocabulary, source.tensor)
    engine, reference = CEngine(path), PyTorch(path)
    assert difference(engine.logits(ids), reference.logits(ids)) < FLOAT32
    assert greedy(engine, ids[:2], 5) == greedy(reference, ids[:2], 5)


@requires(Transformers)
@EXACT
@given(config=configs(divided=True), seed=st.integers(0, 1000))
def test_transformers(tmp_path_factory: pytest.TempPathFactory, config, seed) -> None:
    check_exact(tmp_path_factory.mktemp("hf"), config, seed, Transformers, "hf")


@requires(LlamaCpp)
@EXACT
@given(config=configs(), seed=st.integers(0, 1000))
def test_llama_cpp(tmp_path_factory: pytest.TempPathFactory, config, seed) -> None:
    check_exact(tmp_path_factory.mktemp("gguf"), config, seed, LlamaCpp, "gguf")


@requires(LlamaCpp)
@pytest.mark.parametrize(
    ("name", "allowed"),
    [("gguf-f16", 2e-3), ("gguf-bf16", 2e-2), ("gguf-q8_0", 6e-2), ("gguf-q4_0", 6e-2)],
)
@pytest.mark.parametrize("dim", [64, 72])
def test_llama_cpp_rounded(tmp_path: Path, name: str, allowed: float, dim: int) -> None:
    check_rounded(tmp_path, make_config(dim=dim, hidden=160), LlamaCpp, name, allowed)


@requires(Llama2c)
@EXACT
@given(config=configs(plain=True), seed=st.integers(0, 1000))
def test_llama2c(tmp_path_factory: pytest.TempPathFactory, config, seed) -> None:
    check_exact(tmp_path_factory.mktemp("llama2c"), config, seed, Llama2c, "llama2c")


@requires(Llama2cInt8)
@pytest.mark.parametrize(("heads", "hidden"), [(8, 192), (4, 96), (6, 80)])
def test_llama2c_rounded(tmp_path: Path, heads: int, hidden: int) -> None:
    config = make_config(dim=heads * 8, heads=heads, hidden=hidden)
    check_rounded(tmp_path, config, Llama2cInt8, "llama2c-q8", 6e-2)


TOKENIZERS = pytest.mark.parametrize(
    ("runtime", "name", "allowed"),
    [
        pytest.param(Transformers, "hf", None, marks=requires(Transformers)),
        pytest.param(LlamaCpp, "gguf", None, marks=requires(LlamaCpp)),
        pytest.param(Llama2c, "llama2c", 150, marks=requires(Llama2c)),  # slow
    ],
)


BYTE_LEVEL = pytest.mark.parametrize(
    ("runtime", "name"),
    [
        pytest.param(Transformers, "hf", marks=requires(Transformers)),
        pytest.param(LlamaCpp, "gguf", marks=requires(LlamaCpp)),
    ],
)


@TOKENIZERS
def test_token_ids(tmp_path: Path, runtime: type, name: str, allowed: int | None) -> None:
    config = make_config(vocab_size=1500)
    source = make_source(config)
    export_model(source, name, tmp_path / name)
    weight_file.write(tmp_path / "model.slm", config, source.vocabulary, source.tensor)
    ours, other = Engine(tmp_path / "model.slm"), runtime(tmp_path / name)
    for text in random_texts()[:allowed]:
        if runtime is Llama2c and SPACE in text:
            continue  # U+2581 is an ordinary character in llama2.c, and a space in SentencePiece
        assert other.encode(text) == [1, *ours.encode(text)], repr(text)


def with_tokenizer(stories: Iterable[str], kind: TrainableKind, size: int) -> InteropModel:
    """Return a random model with a tokenizer that was trained on stories."""
    model = make_source(make_config(vocab_size=size))
    trained = tokenizer.from_bytes(tokenizer.train(stories, size, kind=kind))
    return InteropModel(model.config, trained.vocabulary(), model.tensor)


@BYTE_LEVEL
def test_a_byte_level_tokenizer(tmp_path: Path, runtime: type, name: str) -> None:
    """Ids, logits and greedy text; and the weight file of the import has the same tokenizer."""
    source = with_tokenizer(random_texts()[:300], "byte_level", 700)
    theirs, vocabulary = tmp_path / name, source.vocabulary
    export_model(source, name, theirs)
    weight_file.write(tmp_path / "model.slm", source.config, vocabulary, source.tensor)
    import_model(theirs / "model.gguf" if name == "gguf" else theirs, tmp_path / "back.slm")
    ours, other = Engine(tmp_path / "model.slm"), runtime(theirs)
    back, reference = Engine(tmp_path / "back.slm"), PyTorch(tmp_path / "back.slm")
    assert (back.bos_id, back.eos_id) == (vocabulary.bos_id, vocabulary.eos_id)
    for text in random_texts():
        if name == "gguf" and not all(map(is_long_assigned, text)):
            continue
        ids = [vocabulary.bos_id, *ours.encode(text)]
        assert other.encode(text) == ids, repr(text)
        assert [back.bos_id, *back.encode(text)] == ids, repr(text)
    ids = [vocabulary.bos_id, *ours.encode("the <|end_of_text|> a é")]
    assert difference(other.logits(ids), reference.logits(ids)) < FLOAT32
    assert greedy(other, ids, 5) == greedy(reference, ids, 5)


@pytest.fixture(scope="module", params=["sentencepiece", "byte_level"])
def trained(tinystories: Path, request: pytest.FixtureRequest) -> InteropModel:
    """Return a model with a tokenizer that was trained on real stories."""
    stories = islice(files.read(tinystories / "TinyStories-train.txt"), 4000)
    return with_tokenizer(stories, request.param, 4096)


@TOKENIZERS
def test_token_ids_of_real_stories(
    tmp_path: Path,
    tinystories: Path,
    trained: InteropModel,
    runtime: type,
    name: str,
    allowed: int | None,
) -> None:
    if name == "llama2c" and trained.vocabulary.kind == TokenizerKind.BYTE_LEVEL:
        pytest.skip("llama2.c has no byte-level tokenizer")
    export_model(trained, name, tmp_path / name)
    weight_file.write(tmp_path / "model.slm", trained.config, trained.vocabulary, trained.tensor)
    ours, other = Engine(tmp_path / "model.slm"), runtime(tmp_path / name)
    if trained.vocabulary.kind == TokenizerKind.BYTE_LEVEL:
        allowed = 1000  # slow
    for file in ("TinyStories-valid.txt", "TinyStories-train.txt"):
        for story in islice(files.read(tinystories / file), allowed):
            assert other.encode(story) == [ours.bos_id, *ours.encode(story)], repr(story)
