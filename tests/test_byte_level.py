"""The byte-level tokenizer that the workflow trains, compared with the tokenizers library."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import engine_files
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_ranked_tokenizer import MORSELS
from test_tokenizer import NAMES, STORIES, THINGS, VERBS

from storyllamas import tokenizer
from storyllamas.engine.engine import Engine
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import UserError
from storyllamas.slm import weight_file
from storyllamas.tokenizer import tokenizer_json
from storyllamas.tokenizer.base import ImpossibleVocabularyError
from storyllamas.tokenizer.byte_level import BOS_PIECE, EOS_PIECE, ByteLevelTokenizer
from storyllamas.vocabulary import PieceType, PreTokenizer, TokenizerKind, Vocabulary

SIZE = 500
SPECIAL_NAMES = [BOS_PIECE, EOS_PIECE, "<|endoftext|>", "<|eot_id|>", "<s>", "</s>", "<unk>"]


@pytest.fixture(scope="module")
def model() -> bytes:
    return tokenizer.train(STORIES, SIZE, kind="byte_level")


@pytest.fixture(scope="module")
def trained(model: bytes) -> ByteLevelTokenizer:
    return ByteLevelTokenizer(model)


@pytest.fixture(scope="module")
def vocabulary(trained: ByteLevelTokenizer) -> Vocabulary:
    return trained.vocabulary()


@pytest.fixture(scope="module")
def fast(vocabulary: Vocabulary) -> FastTokenizer:
    return FastTokenizer.of(vocabulary)


anything = st.text(st.characters(exclude_categories=["Cs"]))
words = st.sampled_from([*MORSELS, *SPECIAL_NAMES, *NAMES, *VERBS, *THINGS, "\u2585", "🦙"])
texts = anything | st.lists(words | anything, max_size=20).map("".join)


@settings(max_examples=300)
@example("".join(SPECIAL_NAMES))
@example("Lily played 12345 times.\r\n\r\n  I'LL say '\u017f it's\u3000\t\n x ")
@given(text=texts)
def test_ids_are_those_of_the_tokenizers_library(
    trained: ByteLevelTokenizer, fast: FastTokenizer, text: str
) -> None:
    expected = trained.encode(text)
    assert fast.encode(text) == expected
    assert fast.encode_stories([text.encode()]).tolist() == expected
    assert not {trained.bos_id, trained.eos_id} & {*expected}
    assert trained.decode(expected) == fast.decode(expected) == text


def test_pieces_are_bytes_then_words_then_bos_and_eos(
    trained: ByteLevelTokenizer, vocabulary: Vocabulary
) -> None:
    assert (trained.vocab_size, trained.bos_id, trained.eos_id) == (SIZE, SIZE - 2, SIZE - 1)
    assert (vocabulary.unk_id, vocabulary.pad_id) == (-1, -1)
    assert {*vocabulary.pieces[:256]} == {bytes([value]) for value in range(256)}
    assert all(len(piece) > 1 for piece in vocabulary.pieces[256:])
    assert vocabulary.pieces[-2:] == [b"<|begin_of_text|>", b"<|end_of_text|>"]
    kinds = [PieceType.NORMAL] * (SIZE - 2) + [PieceType.CONTROL] * 2
    assert vocabulary.types.tolist() == kinds
    assert vocabulary.kind == TokenizerKind.BYTE_LEVEL
    assert vocabulary.pre_tokenizer == PreTokenizer.LLAMA3
    assert not vocabulary.dummy_prefix
    assert vocabulary.adds_bos


def test_the_bytes_have_the_ids_of_llama_3(vocabulary: Vocabulary) -> None:
    """The first id of Llama 3 is that of "!"; the bytes that are no visible characters are last."""
    first = "".join(map(tokenizer_json.spell, vocabulary.pieces[:256]))
    assert first[:3] == '!"#'
    assert first == "".join(sorted(first))


def test_pieces_do_not_extend_over_words(vocabulary: Vocabulary) -> None:
    learned = [piece.decode(errors="replace") for piece in vocabulary.pieces[256:-2]]
    assert " played" in learned
    assert not [piece for piece in learned if " " in piece[1:]]
    assert not [piece for piece in learned if piece.isdigit() and len(piece) > 3]


def test_training_is_deterministic_and_silent(
    model: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tokenizer.train(STORIES, SIZE, kind="byte_level") == model
    assert tokenizer.train(iter(STORIES), SIZE, kind="byte_level") == model
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "environment",
    [{"RAYON_NUM_THREADS": "1"}, {"RAYON_NUM_THREADS": "7"}, {"TOKENIZERS_PARALLELISM": "false"}],
    ids=["one", "seven", "none"],
)
def test_threads_do_not_change_a_byte(model: bytes, environment: dict[str, str]) -> None:
    script = (
        "import hashlib, json, sys\n"
        "from storyllamas import tokenizer\n"
        f"model = tokenizer.train(json.load(sys.stdin), {SIZE}, kind='byte_level')\n"
        "print(hashlib.sha256(model).hexdigest())"
    )
    digest = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(STORIES),
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.strip()
    assert digest == hashlib.sha256(model).hexdigest()


def test_text_of_random_characters_is_learned_and_encoded() -> None:
    """Pieces that are no whole characters, and words of more bytes than a cache holds."""
    draw = random.Random(0)
    points = [*range(0x20, 0x250), *range(0x3040, 0x30FF), *range(0x1F300, 0x1F600)]
    alphabet = [chr(point) for point in points]
    stories = ["".join(draw.choices(alphabet, k=200)) for _ in range(100)] + [
        "=" * 3000,
        "ab" * 999,
    ]
    both = tokenizer.from_bytes(tokenizer.train(stories, 1500, kind="byte_level"))
    fast = FastTokenizer.of(both.vocabulary())
    for story in stories:
        assert fast.encode(story) == both.encode(story)
        assert fast.decode(fast.encode(story)) == story


def test_a_vocabulary_that_cannot_be_filled_is_rejected_with_the_largest_that_can() -> None:
    with pytest.raises(ImpossibleVocabularyError, match=r"60000 and the corpus can fill") as error:
        tokenizer.train(STORIES, 60000, kind="byte_level")
    largest = error.value.nearest
    assert f"use at most {largest}, or more" in str(error.value)
    trained = tokenizer.from_bytes(tokenizer.train(STORIES, largest, kind="byte_level"))
    assert trained.vocab_size == largest
    with pytest.raises(ImpossibleVocabularyError):
        tokenizer.train(STORIES, largest + 1, kind="byte_level")


def test_bytes_per_token_counts_text_without_its_frame(trained: ByteLevelTokenizer) -> None:
    assert tokenizer.bytes_per_token(trained, ["\x00🦙"]) == 1
    assert tokenizer.bytes_per_token(trained, STORIES) > 2


def test_the_kind_is_detected_from_the_content(tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model)
    loaded = tokenizer.load(path)
    assert isinstance(loaded, ByteLevelTokenizer)
    assert loaded.digest == hashlib.sha256(model).digest()
    assert loaded.model == model


def changed(model: bytes, **parts: object) -> bytes:
    return json.dumps(json.loads(model) | parts).encode()


def test_damaged_files_are_rejected(tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    damaged = [
        *(model[: len(model) // 2], b"{", b"{}", b"{\xff}", b'{"model": {}}'),
        changed(model, added_tokens=json.loads(model)["added_tokens"][:1]),
        changed(model, pre_tokenizer=None),
        changed(model, version="9"),
    ]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(UserError, match="is not a SentencePiece model or a byte-level"):
            tokenizer.load(path)


def test_the_weight_file_holds_it(
    tmp_path: Path, trained: ByteLevelTokenizer, vocabulary: Vocabulary
) -> None:
    config = engine_files.small_config(vocab_size=SIZE)
    path = tmp_path / "model.slm"
    engine_files.write(path, config, engine_files.random_tensors(config), vocabulary)
    found = weight_file.read(path).vocabulary
    for name, value in vars(vocabulary).items():
        assert np.array_equal(getattr(found, name), value), name
    engine = Engine(path)
    assert (engine.bos_id, engine.eos_id) == (trained.bos_id, trained.eos_id)
    for text in [*STORIES[:20], *SPECIAL_NAMES]:
        assert engine.encode(text) == trained.encode(text)
