"""The C tokenizer gives SentencePiece's ids, on any text and any kind of vocabulary.

Each text is encoded with the word cache, whose slots fill up in the course of a test, and without.
"""

from __future__ import annotations

import io
import itertools
import random
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import engine_files
import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storyllamas.engine.engine import Engine
from storyllamas.engine.ffi import ffi, lib
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import UserError
from storyllamas.vocabulary import PieceType, Vocabulary

SPACE = "\u2581"
SENTENCES = [
    "Once upon a time there was a little cat named Tom, who liked to play in the big garden.",
    "Lily said, \"Can we go to the park, Mommy?\" and they went to the park together.",
    "The dog ran and ran. It was happy! The cat did not like the dog's loud bark.",
    "One day, a bird flew over the tree; the tree's leaves were green and the sky was blue.",
    "Ünïcode wörds, naïve café, 日本語 and emoji 🙂 are here too, 1234 5678 90.",
    "aaaa aaaaaaaa aaa abababab abab baba   three   spaces  and two",
] * 3  # fmt: skip

# One tokenizer for each option that may differ.
KINDS: dict[str, dict[str, object]] = {
    "bytes": {},
    "unknown": {"byte_fallback": False, "character_coverage": 0.98},
    "no prefix": {"add_dummy_prefix": False},
    "user-defined": {
        "user_defined_symbols": ["<sep>", "cat", "ca", "🙂🙂", "the dog", f"the{SPACE}dog", "aa"],
        "control_symbols": ["<ctrl>"],
    },
    "unused": {},
    "unused unknown": {"byte_fallback": False},
    "pads": {"pad_id": 3, "bos_id": -1, "split_digits": True, "split_by_unicode_script": False},
}


# ---- SentencePiece's model file ------------------------------------------------------------------


def fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the number, the content and all bytes of each field of a protocol buffer."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (message[at] & 0x7F) << shift
            shift += 7
            at += 1
            if message[at - 1] < 0x80:
                return value, at

    at = 0
    while at < len(message):
        start = at
        key, at = varint(at)
        content, kind = at, key & 7
        if kind == 2:
            size, content = varint(at)
            at = content + size
        else:
            at = varint(at)[1] if kind == 0 else at + {1: 8, 5: 4}[kind]
        yield key >> 3, message[content:at], message[start:at]


def pieces(model: bytes) -> list[tuple[bytes, float, int]]:
    """Return the text, score and type of every piece."""
    found = []
    for number, content, _ in fields(model):
        if number == 1:
            part = {name: value for name, value, _ in fields(content)}
            kind = part[3][0] if 3 in part else PieceType.NORMAL
            found.append((part[1], struct.unpack("<f", part[2])[0], kind))
    return found


def with_unused(model: bytes) -> bytes:
    """Mark every third normal piece of the model as unused."""
    parts, index = [], 0
    for number, content, whole in fields(model):
        if number == 1:
            piece = {name: value for name, value, _ in fields(content)}
            index += 1
            if 3 not in piece and index % 3 == 0:
                content += bytes([3 << 3, PieceType.UNUSED])
                whole = bytes([1 << 3 | 2, len(content)]) + content
        parts.append(whole)
    return b"".join(parts)


def train(kind: str) -> bytes:
    model = io.BytesIO()
    options = {"byte_fallback": True, "character_coverage": 1.0, **KINDS[kind]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=(500 if options["byte_fallback"] else 240),
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return with_unused(model.getvalue()) if kind.startswith("unused") else model.getvalue()


def vocabulary(model: bytes, processor: sentencepiece.SentencePieceProcessor) -> Vocabulary:
    texts, scores, types = zip(*pieces(model), strict=True)
    return Vocabulary(
        pieces=list(texts),
        scores=np.array(scores, np.float32),
        types=np.array(types, np.uint8),
        unk_id=processor.unk_id(),
        bos_id=processor.bos_id(),
        eos_id=processor.eos_id(),
        pad_id=processor.pad_id(),
        dummy_prefix=processor.normalize("a").startswith(SPACE),
        byte_fallback=PieceType.BYTE in types,
    )


class Pair:
    """The same tokenizer twice: SentencePiece's and the engine's."""

    def __init__(self, model: bytes, folder: Path) -> None:
        self.theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
        known = vocabulary(model, self.theirs)
        config = engine_files.small_config(
            dim=2, layers=1, heads=1, kv_heads=1, head_dim=2, hidden=1, vocab_size=len(known.pieces)
        )
        tensors = engine_files.random_tensors(config)
        self.engine = Engine(engine_files.write(folder / "model.slm", config, tensors, known))
        self.ours = FastTokenizer.of(known)
        self.vocabulary = known
        self.pieces = known.pieces
        self.types = set(known.types.tolist())

    def check(self, text: str) -> None:
        expected = self.theirs.encode(text)
        assert self.ours.encode(text) == expected
        assert encode_without_cache(self.ours, text) == expected
        assert self.ours.decode(expected) == self.theirs.decode(expected)


def encode_without_cache(tokenizer: FastTokenizer, text: str) -> list[int]:
    data = text.encode()
    ids = ffi.new("int32_t[]", 3 * (len(data) + 1))
    count = ffi.new("size_t *")
    assert (
        lib.sl_encode(tokenizer.handle, ffi.NULL, data, len(data), ids, len(ids), count)
        == lib.SL_OK
    )
    return ffi.unpack(ids, count[0])


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(train(request.param), tmp_path_factory.mktemp("tokenizer"))


def test_kinds_are_what_they_say(pair: Pair, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["pair"]
    assert (PieceType.USER_DEFINED in pair.types) == (kind == "user-defined")
    assert (PieceType.UNUSED in pair.types) == kind.startswith("unused")
    assert (PieceType.BYTE in pair.types) == (not kind.endswith("unknown"))


def test_unused_characters_are_unknown(pair: Pair) -> None:
    unused = [
        piece.decode()
        for piece, kind in zip(pair.pieces, pair.vocabulary.types, strict=True)
        if kind == PieceType.UNUSED and len(piece.decode()) == 1
    ]
    assert bool(unused) == (PieceType.UNUSED in pair.types)
    for character in unused:
        pair.check(character)
        pair.check(f"a{character}{character} {character}b")


# Any text; and texts of parts that merge, are user-defined, unknown or look like a special piece.
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MORSELS = [
    *(
        "a",
        "aa",
        "b",
        "ab",
        " ",
        "  ",
        SPACE,
        "\n",
        "\0",
        "cat",
        "ca",
        "the dog",
        "the",
        " d",
        "og",
    ),
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<0x41>",
        "<sep>",
        "<ctrl>",
        "🙂",
        "🙂🙂",
        "é",
        "e\u0301",
        "日本",
        "12",
    ),
    *("\ufffd", "\U0010ffff", "zażółć", "Once upon a time", "Lily", "ing", ".", *SENTENCES),
]
morsels = st.sampled_from(MORSELS)
texts = st.one_of(anything, st.lists(st.one_of(morsels, anything), max_size=30).map("".join))


@settings(max_examples=300)
@example("")
@example(" ")
@example(SPACE)
@example("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
@example("\0a\0\0b")
@given(text=texts)
def test_encodes_as_sentencepiece(pair: Pair, text: str) -> None:
    pair.check(text)


@settings(max_examples=300)
@given(data=st.data())
def test_decodes_as_sentencepiece(pair: Pair, data: st.DataObject) -> None:
    """Any ids: control and unknown pieces between others, bytes that are no characters."""
    special = st.integers(0, min(9, len(pair.pieces) - 1))
    high_bytes = st.integers(min(130, len(pair.pieces) - 1), min(258, len(pair.pieces) - 1))
    any_id = st.integers(0, len(pair.pieces) - 1)
    ids = data.draw(st.lists(st.one_of(special, high_bytes, any_id), max_size=30))
    assert pair.ours.decode(ids) == pair.theirs.decode(ids)


@settings(max_examples=200)
@given(raw=st.binary(max_size=24))
def test_decodes_bytes_as_sentencepiece(pair: Pair, raw: bytes) -> None:
    """Random bytes, mostly not UTF-8, as byte pieces if the vocabulary has them."""
    spelt = [b"<0x%02X>" % value for value in raw]
    ids = [pair.pieces.index(piece) for piece in spelt if piece in pair.pieces]
    assert pair.ours.decode(ids) == pair.theirs.decode(ids)


def test_every_valid_character(pair: Pair) -> None:
    """Each code point once, in random order, so that unusual neighbours occur."""
    points = [*range(0xD800), *range(0xE000, 0x110000, 7)]
    random.Random(0).shuffle(points)
    pair.check("".join(map(chr, points)))


def test_the_engine_has_its_models_tokenizer(pair: Pair) -> None:
    for text in ("", *SENTENCES):
        assert pair.engine.encode(text) == pair.theirs.encode(text)
        assert (
            pair.engine.decode(pair.theirs.encode(text)) == text or PieceType.BYTE not in pair.types
        )


@settings(max_examples=60)
@given(stories=st.lists(texts, max_size=8), bos_id=st.integers(-1, 2), eos_id=st.integers(-1, 2))
def test_many_stories_at_once(pair: Pair, stories: list[str], bos_id: int, eos_id: int) -> None:
    expected = []
    for story in stories:
        expected += [bos_id] * (bos_id >= 0) + pair.theirs.encode(story) + [eos_id] * (eos_id >= 0)
    ids = pair.ours.encode_stories([story.encode() for story in stories], bos_id, eos_id)
    assert ids.tolist() == expected


def test_the_cache_with_more_words_than_slots() -> None:
    """Each word comes again after others have replaced it in its slot.

    All letters merge, so that no border divides a word. Some words are longer than those in the
    cache, and many differ in a few bytes only.
    """
    letters = "abcdehot"
    joined = [itertools.product(letters, repeat=length) for length in (1, 2, 4)]
    pieces = [SPACE, *(SPACE + letter for letter in letters)]
    pieces += ["".join(part) for part in itertools.chain(*joined)]
    vocabulary = engine_files.make_vocabulary([piece.encode() for piece in pieces])
    ours = FastTokenizer.of(replace(vocabulary, scores=0 * vocabulary.scores))
    draw = random.Random(0)
    words = ["".join(draw.choices(letters, k=draw.randint(1, 26))) for _ in range(70_000)]
    middles = ["".join(draw.choices(letters, k=8)) for _ in range(20_000)]
    for before, after in (("", 8), ("thethet", 8), ("thethethethethe", 0)):
        words += [before + middle + "o" * after for middle in middles]
    text = " ".join(words + words)
    assert len(ours.encode(words[-1])) == 7  # the largest number in the cache
    assert ours.encode(text) == encode_without_cache(ours, text)


def test_long_texts_of_a_few_letters(pair: Pair) -> None:
    """Texts with many possible merges."""
    draw = random.Random(0)
    for letters in ("ab", "ab ", "aeht", "the ogd", "atc\n"):
        pair.check("".join(draw.choices(letters, k=20_000)))


def test_threads_share_a_tokenizer(pair: Pair) -> None:
    texts = [f"{sentence} {index}" for index in range(20) for sentence in SENTENCES]
    expected = pair.theirs.encode(texts)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(pair.ours.encode, texts)) == expected
            framed = pool.map(pair.ours.encode_stories, [[text.encode()] for text in texts])
            assert [ids.tolist() for ids in framed] == expected


def test_every_story(tinystories: Path) -> None:
    from storyllamas import tokenizer

    stories = [
        story
        for name in ("TinyStories-train.txt", "TinyStories-valid.txt")
        for story in (tinystories / name).read_text(encoding="utf-8").split("<|endoftext|>")
    ]
    trained = tokenizer.from_bytes(tokenizer.train(stories[:1000], 4096))
    ours = FastTokenizer.of(trained.vocabulary())
    expected = [trained.encode(story) for story in stories]
    assert [ours.encode(story) for story in stories] == expected
    assert [ours.decode(ids) for ids in expected] == list(map(trained.decode, expected))
    together = ours.encode_stories([story.encode() for story in stories])
    assert together.tolist() == list(itertools.chain(*expected))


def test_time_grows_no_faster_than_the_text(pair: Pair) -> None:
    """Texts of one kind of letter merge the most; a quadratic loop would take hours here."""
    for unit in ("a", "ab", "the cat ", " "):
        text = unit * (1 << 20 >> len(unit).bit_length())
        began = time.process_time()
        ids = pair.ours.encode(text)
        assert time.process_time() - began < 10
        assert pair.ours.decode(ids) == text or PieceType.BYTE not in pair.types


@pytest.mark.parametrize("length", [22, 23, 24, 25, 63, 64, 65, 1000])
def test_words_about_as_long_as_the_cache_keeps(pair: Pair, length: int) -> None:
    for text in ("b" * length, " " * length, "é" * (length // 2), "a " + "x" * length):
        pair.check(text)
        pair.check(f"{text} {text}")


# ---- Rejections ----------------------------------------------------------------------------------


def encode_bytes(tokenizer: FastTokenizer, data: bytes, capacity: int = 100) -> int:
    ids = ffi.new("int32_t[]", capacity + 1)
    ids[capacity] = -77
    count = ffi.new("size_t *")
    status: int = lib.sl_encode(tokenizer.handle, ffi.NULL, data, len(data), ids, capacity, count)
    assert ids[capacity] == -77  # nothing is written beyond the capacity
    return status


def first_invalid(data: bytes) -> int | None:
    """Return the offset of the first byte that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def last_error() -> str:
    return bytes(ffi.string(lib.sl_error())).decode()


@settings(max_examples=500)
@given(data=st.one_of(st.binary(max_size=20), st.tuples(texts, st.binary(max_size=4)).map(
    lambda parts: parts[0].encode() + parts[1])))  # fmt: skip
def test_rejects_exactly_the_bytes_that_are_not_utf8(pair: Pair, data: bytes) -> None:
    bad = first_invalid(data)
    if bad is None:
        assert encode_bytes(pair.ours, data, 3 * (len(data) + 1)) == lib.SL_OK
    else:
        assert encode_bytes(pair.ours, data) == lib.SL_ERROR_TEXT
        assert f"at byte {bad} " in last_error()


def test_too_little_room(pair: Pair) -> None:
    assert encode_bytes(pair.ours, b"Tom and Lily", 2) == lib.SL_ERROR_ARGUMENT
    assert last_error().endswith("ids and there is room for 2")


def test_python_rejects_half_a_surrogate_pair(pair: Pair) -> None:
    with pytest.raises(UserError, match=r"remove its character 2, .* half of a surrogate pair"):
        pair.ours.encode("ab\ud800")


def test_ids_outside_the_vocabulary(pair: Pair) -> None:
    size = len(pair.pieces)
    for bad in (-1, size, 2**31 - 1):
        with pytest.raises(
            UserError, match=rf"token id {bad} is not in the vocabulary: give 0 to {size - 1}"
        ):
            pair.ours.decode([4, bad])
    with pytest.raises(UserError, match="not a whole number of 32 bits"):
        pair.ours.decode([2**40])


def test_a_cache_is_of_one_tokenizer(pair: Pair) -> None:
    other = FastTokenizer.of(pair.vocabulary)
    ids, count = ffi.new("int32_t[]", 9), ffi.new("size_t *")
    with other._cache() as cache:
        status = lib.sl_encode(pair.ours.handle, cache, b"a", 1, ids, 9, count)
    assert status == lib.SL_ERROR_ARGUMENT
    assert (
        last_error() == "the word cache belongs to another tokenizer: make one for this tokenizer"
    )


def test_stories_out_of_order_and_in_too_little_room(pair: Pair) -> None:
    def encode(offsets: list[int], capacity: int) -> int:
        ids, count = ffi.new("int32_t[]", capacity), ffi.new("size_t *")
        status: int = lib.sl_encode_stories(
            *(pair.ours.handle, ffi.NULL, b"Tom and Lily", offsets, len(offsets) - 1),
            *(1, 2, ids, capacity, count),
        )
        return status

    assert encode([0, 3, 12], 60) == lib.SL_OK
    assert encode([0, 12, 3], 60) == lib.SL_ERROR_ARGUMENT
    assert last_error() == "the offsets of the stories run backwards at 1"
    assert encode([0, 3, 12], 4) == lib.SL_ERROR_ARGUMENT
    assert last_error().endswith("ids and there is room for 4")
    with pytest.raises(UserError, match=r"not valid UTF-8 at byte 1 \(0xff\)"):
        pair.ours.encode_stories([b"Tom", b"a\xff"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pieces": []}, "it has no pieces or too many"),
        ({"scores": np.full(265, np.nan, np.float32)}, "piece 0 has no finite score"),
        ({"types": np.zeros(265, np.uint8)}, "piece 0 has an unknown type"),
        ({"unk_id": 265}, "unk_id is out of range"),
        ({"unk_id": 3}, "piece 0 is of type unknown but is not unk_id"),
        ({"pieces": [b"a"] * 265}, "piece 3 is a byte piece but does not spell a byte"),
    ],
)
def test_a_vocabulary_that_contradicts_itself(changes: dict[str, object], words: str) -> None:
    vocabulary = replace(engine_files.make_vocabulary(), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"^the vocabulary is damaged: {words}$"):
        FastTokenizer.of(vocabulary)
