"""The tokenizer's conventions, and its ids against a plain BPE over the exported vocabulary."""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from storyllamas import tokenizer
from storyllamas.errors import UserError
from storyllamas.tokenizer.sentencepiece import SentencePieceTokenizer
from storyllamas.vocabulary import PieceType, Vocabulary

NAMES = ["Lily", "Tom", "Mia", "Ben", "Zoé"]
VERBS = ["played", "found", "lost", "wanted", "shared"]
THINGS = ["ball", "kite", "cookie", "little red wagon", "puppy"]


def invented_stories(count: int) -> list[str]:
    """Text enough to learn a few hundred pieces from."""
    draw = random.Random(1).choice
    return [
        "\n".join(
            f'{draw(NAMES)} {draw(VERBS)} {i} times with a {draw(THINGS)}. "Hello!"'
            for _ in range(3)
        )
        for i in range(count)
    ]


STORIES = invented_stories(200)


@pytest.fixture(scope="module")
def model() -> bytes:
    return tokenizer.train(STORIES, 400)


@pytest.fixture(scope="module")
def trained(model: bytes) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(model)


@pytest.fixture(scope="module")
def vocabulary(trained: SentencePieceTokenizer) -> Vocabulary:
    return trained.vocabulary()


def plain_bpe(vocabulary: Vocabulary, text: str) -> list[int]:
    """Merge the neighbours of the highest score, leftmost first, then spell what is left."""
    ids = {
        piece.decode(): index
        for index, piece in enumerate(vocabulary.pieces)
        if vocabulary.types[index] == PieceType.NORMAL
    }
    pieces = list((" " + text).replace(" ", "\u2581")) if text else []
    while True:
        merges = [
            (-vocabulary.scores[ids[pair]], i)
            for i, pair in enumerate(map("".join, itertools.pairwise(pieces)))
            if pair in ids
        ]
        if not merges:
            break
        _, i = min(merges)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return [
        index
        for piece in pieces
        for index in ([ids[piece]] if piece in ids else [3 + byte for byte in piece.encode()])
    ]


texts = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from([*" \n\t19é", *NAMES, *VERBS, *THINGS, "\u2581", "<s>", "<0x0A>", "🦙"])
).map("".join)


@settings(max_examples=300)
@given(text=texts)
def test_ids_are_those_of_a_plain_bpe_over_the_vocabulary(
    trained: SentencePieceTokenizer, vocabulary: Vocabulary, text: str
) -> None:
    assert trained.encode(text) == plain_bpe(vocabulary, text)


@settings(max_examples=300)
@given(text=texts)
def test_decoding_gives_the_text_back(trained: SentencePieceTokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text.replace("\u2581", " ")


def test_special_and_byte_pieces_have_the_ids_of_llama(
    trained: SentencePieceTokenizer, vocabulary: Vocabulary
) -> None:
    assert (trained.vocab_size, trained.bos_id, trained.eos_id) == (400, 1, 2)
    assert (vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id) == (0, 1, 2)
    assert vocabulary.pad_id == -1
    assert vocabulary.dummy_prefix
    assert vocabulary.byte_fallback
    assert vocabulary.pieces[:3] == [b"<unk>", b"<s>", b"</s>"]
    assert vocabulary.pieces[3:259] == [b"<0x%02X>" % byte for byte in range(256)]
    kinds = [PieceType.UNKNOWN, *[PieceType.CONTROL] * 2, *[PieceType.BYTE] * 256]
    assert vocabulary.types.tolist() == kinds + [PieceType.NORMAL] * 141
    assert len(vocabulary.scores) == 400


def test_a_line_break_is_a_byte_and_each_digit_is_a_piece(
    trained: SentencePieceTokenizer, vocabulary: Vocabulary
) -> None:
    assert 3 + ord("\n") in trained.encode("Tom\nMia")
    assert not any(b"\n" in piece for piece in vocabulary.pieces)
    learned = vocabulary.pieces[259:]
    assert {p for p in learned if any(c in b"0123456789" for c in p)} == {
        b"%d" % digit for digit in range(10)
    }


def test_runs_of_spaces_are_kept_and_learned() -> None:
    indented = SentencePieceTokenizer(tokenizer.train(["    Tom", "        Sue"] * 9, 272))
    assert "\u2581\u2581".encode() in indented.vocabulary().pieces
    assert indented.decode(indented.encode("  Tom   Sue ")) == "  Tom   Sue "


def test_text_of_control_pieces_is_only_text(trained: SentencePieceTokenizer) -> None:
    assert not {0, 1, 2} & set(trained.encode("<s> </s> <unk>"))


def test_training_is_deterministic_and_silent(
    model: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tokenizer.train(STORIES, 400) == model
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_change_nothing_that_is_learned(
    model: bytes, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = sentencepiece.SentencePieceTrainer.train

    def with_threads(**how: object) -> None:
        train(**how | {"num_threads": threads})

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", with_threads)
    other = tokenizer.train(STORIES, 400)
    assert other != model  # the model stores the number
    expected, found = (SentencePieceTokenizer(each).vocabulary() for each in (model, other))
    assert found.pieces == expected.pieces
    assert found.scores.tolist() == expected.scores.tolist()
    assert found.types.tolist() == expected.types.tolist()


def test_a_long_line_is_learned_from_like_any_other() -> None:
    long_line = "word " * 20_000 + "ж"
    assert (
        "ж".encode() in tokenizer.from_bytes(tokenizer.train([long_line], 267)).vocabulary().pieces
    )


def test_a_vocabulary_that_cannot_be_filled_is_rejected_with_the_largest_that_can() -> None:
    with pytest.raises(UserError, match=r"vocab_size is 60000 .* use at most (\d+)") as caught:
        tokenizer.train(STORIES, 60000)
    largest = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert SentencePieceTokenizer(tokenizer.train(STORIES, largest)).vocab_size == largest
    with pytest.raises(UserError):
        tokenizer.train(STORIES, largest + 1)


def test_a_vocabulary_too_small_for_the_characters_is_rejected_with_the_smallest() -> None:
    with pytest.raises(UserError, match=r"vocab_size is 260 .* use at least (\d+)") as caught:
        tokenizer.train(STORIES, 260)
    smallest = int(str(caught.value).split("at least ")[1])
    assert SentencePieceTokenizer(tokenizer.train(STORIES, smallest)).vocab_size == smallest
    with pytest.raises(UserError):
        tokenizer.train(STORIES, smallest - 1)


def test_bytes_per_token_counts_text_without_its_frame(trained: SentencePieceTokenizer) -> None:
    assert tokenizer.bytes_per_token(trained, ["🦙\n"]) == 5 / 6
    assert tokenizer.bytes_per_token(trained, STORIES) > 2


def test_loading(tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(UserError, match="does not exist"):
        tokenizer.load(path)
    for damaged in (b"", b"not a model", model[: len(model) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a SentencePiece model"):
            tokenizer.load(path)
    path.write_bytes(model)
    loaded = tokenizer.load(path)
    assert loaded.encode(STORIES[0]) == SentencePieceTokenizer(model).encode(STORIES[0])
    assert loaded.digest == hashlib.sha256(model).digest()
