"""The C tokenizer gives the ids of `tokenizers` for every kind of tokenizer.json."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_files
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ranked import KINDS, SENTENCES, Pair, pair, train
from tokenizers import Tokenizer

from storyllamas.engine.engine import Engine
from storyllamas.engine.ffi import ffi, lib
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import UserError
from storyllamas.interop import gguf_bpe
from storyllamas.slm import weight_file
from storyllamas.tokenizer import tokenizer_json
from storyllamas.vocabulary import (
    Added,
    PieceType,
    PreTokenizer,
    Strip,
    TokenizerKind,
    Vocabulary,
)

ROOT = Path(__file__).resolve().parent.parent
SPACE = "▁"

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MORSELS = [
    *("a", "aa", "ab", " ", "  ", "   ", SPACE, "\n", "\r\n", "\t", "\0", "\u00a0", "\u3000"),
    *("cat", "the big", "the", " d", "og", "<sep>", " <wide> ", "<wide>", "<|end|>", "<|end"),
    *(
        "<|user|>",
        "<s>",
        "<unk>",
        "<0x41>",
        "🙂",
        "🙂🙂",
        "é",
        "e\u0301",
        "日本",
        "中文",
        "1",
        "234",
    ),
    *("'s", "'S", "'ll", "'LL", "'re", "'Ve", "'t", "'m", "'D", "'ſ", "'", "½", "٣", "Ⅷ", "²"),
    *("\u200b", "\ufeff", "\ufffd", "\U0010ffff", "👩\u200d👩", "🇩🇪", "...", "!?", "Lily", "_"),
    *("\U00011de0", "\U00016ff4", "\u1c89", *SENTENCES),
]
morsels = st.sampled_from(MORSELS)
texts = st.one_of(anything, st.lists(st.one_of(morsels, anything), max_size=30).map("".join))


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


def without_cache(tokenizer: FastTokenizer, text: str, special: bool) -> list[int]:
    data = text.encode()
    ids = ffi.new("int32_t[]", 3 * (len(data) + 1))
    count = ffi.new("size_t *")
    function = lib.sl_encode_special if special else lib.sl_encode
    status = function(tokenizer.handle, ffi.NULL, data, len(data), ids, len(ids), count)
    assert status == lib.SL_OK
    return ffi.unpack(ids, count[0])


def check(both: Pair, text: str) -> None:
    for special in (False, True):
        expected = both.ids(text, special)
        assert both.ours.encode(text, special) == expected
        assert without_cache(both.ours, text, special) == expected


@settings(max_examples=80)
@example("")
@example(" ")
@example(SPACE)
@example("a" * 200)
@example(" " * 100 + "a")
@example("<wide>  <wide> \n<sep>")
@given(text=texts)
def test_encodes_as_tokenizers(both: Pair, text: str) -> None:
    check(both, text)


@settings(max_examples=60)
@given(data=st.data())
def test_decodes_as_tokenizers(both: Pair, data: st.DataObject) -> None:
    """Any ids but byte pieces: `tokenizers` loses a run of them if one byte is no character.

    `tokenizers` shows special tokens that are found in normalized text; transformers does not.
    """
    visible = [
        index
        for index in range(len(both.vocabulary.pieces))
        if index not in both.hidden() and both.vocabulary.types[index] != PieceType.BYTE
    ]
    if both.theirs.normalizer is not None:
        normalized = {int(i) for i, flags in both.vocabulary.added if flags & Added.NORMALIZED}
        visible = [index for index in visible if index not in normalized]
    ids = data.draw(st.lists(st.sampled_from(visible), max_size=30))
    shown = both.ours.decode(ids)
    assert shown == both.theirs.decode(ids)
    with_hidden = [index for each in ids for index in (*both.hidden(), each)]
    assert both.ours.decode(with_hidden) == shown


@settings(max_examples=40)
@given(text=texts)
def test_decodes_its_own_ids(both: Pair, text: str) -> None:
    """Characters whose bytes are spread over several pieces."""
    ids = [index for index in both.ids(text) if index not in both.hidden()]
    if both.theirs.normalizer is None or not {*ids} & {*both.vocabulary.added[:, 0].tolist()}:
        assert both.ours.decode(ids) == both.theirs.decode(ids)


def test_every_valid_character(both: Pair) -> None:
    """Each code point once, in random order, so that unusual neighbours occur."""
    points = [*range(0x800), *range(0x800, 0xD800, 11), *range(0xE000, 0x20000, 13)]
    points += range(0x20000, 0x110000, 997)
    random.Random(0).shuffle(points)
    text = "".join(map(chr, points))
    for start in range(0, len(text), 1000):
        check(both, text[start : start + 1000])


@pytest.mark.parametrize("length", [22, 23, 24, 25, 63, 64, 65, 96, 97, 1000])
def test_words_about_as_long_as_the_cache_keeps(both: Pair, length: int) -> None:
    for text in ("b" * length, " " * length, "é" * (length // 2), "a " + "x" * length):
        check(both, text)
        check(both, f"{text} {text}")


def test_long_texts_of_a_few_letters(both: Pair) -> None:
    draw = random.Random(0)
    for letters in ("ab", "ab ", "aeht", "the ogd", "atc\n", "日本語", "1 2"):
        check(both, "".join(draw.choices(letters, k=3000)))


def test_time_grows_no_faster_than_the_text(both: Pair) -> None:
    for unit in ("a", "ab", "the cat ", " ", "\n ", "日本", "<|en", "'"):
        text = unit * (1 << 18 >> len(unit).bit_length())
        began = time.process_time()
        both.ours.encode(text)
        assert time.process_time() - began < 10


def test_many_stories_at_once(both: Pair) -> None:
    stories = [*SENTENCES, "", " ", "<|end|>"]
    expected = [index for story in stories for index in [1, *both.ids(story), 0]]
    raw = [story.encode() for story in stories]
    assert both.ours.encode_stories(raw, 1, 0).tolist() == expected


# ---- The weight file and the engine --------------------------------------------------------------


def write(path: Path, vocabulary: Vocabulary) -> Path:
    config = engine_files.small_config(
        dim=2, layers=1, heads=1, kv_heads=1, head_dim=2, hidden=1,
        vocab_size=len(vocabulary.pieces),
    )  # fmt: skip
    return engine_files.write(path, config, engine_files.random_tensors(config), vocabulary)


def test_the_weight_file_holds_all_of_it(both: Pair, tmp_path: Path) -> None:
    path = write(tmp_path / "model.slm", replace(both.vocabulary, adds_bos=False))
    found = weight_file.read(path).vocabulary
    for name, value in vars(replace(both.vocabulary, adds_bos=False)).items():
        assert np.array_equal(getattr(found, name), value), name
    engine = Engine(path)
    for text in SENTENCES:
        assert engine.encode(text) == both.ids(text)


def test_a_prompt_gets_bos_only_where_the_tokenizer_adds_it(tmp_path: Path) -> None:
    vocabulary = replace(pair("gpt2").vocabulary, bos_id=1)
    for adds_bos in (False, True):
        path = write(tmp_path / "model.slm", replace(vocabulary, adds_bos=adds_bos))
        assert Engine(path).info["adds_bos"] == adds_bos


def test_converts_to_tokenizer_json_and_back(both: Pair) -> None:
    data = tokenizer_json.to_json(both.vocabulary)
    again = Tokenizer.from_str(json.dumps({"version": "1.0", "post_processor": None, **data}))
    for text in [*SENTENCES, *MORSELS]:
        assert again.encode(text, add_special_tokens=False).ids == both.ids(text, special=True)
    found = tokenizer_json.from_json("the file", data)
    for name, value in vars(both.vocabulary).items():
        assert np.array_equal(getattr(found, name), value), name


# ---- Rejections ----------------------------------------------------------------------------------


def changed(kind: str, **parts: Any) -> dict[str, Any]:
    return json.loads(train(kind).to_str()) | parts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "is WordPiece: only BPE can be imported"),
        (changed("gpt2", pre_tokenizer={"type": "Whitespace"}), r"\(Whitespace\) cannot be"),
        (changed("legacy", pre_tokenizer={"type": "BertPreTokenizer"}), "SmolLM"),
        (changed("gpt2", normalizer={"type": "NFC"}), r"normalizer .* \(NFC\) cannot be"),
        (changed("legacy", normalizer=None), r"normalizer .* \(none\) cannot be"),
        (changed("legacy", decoder=None), r"decoder .* \(none\) cannot be"),
        (changed("gpt2", model={"type": "BPE", "vocab": {}, "merges": ["a b"]}), "no piece 'a'"),
        (changed("gpt2", model={"type": "BPE", "merges": []}), "is damaged"),
        (changed("gpt2", model={"vocab": {}, "merges": [], "dropout": 0.1}), "dropout"),
        (changed("gpt2", model={"vocab": {}, "merges": [], "unk_token": "?"}), "unknown token"),
    ],
)
def test_rejects_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenizer_json.from_json("tokenizer.json", data)


def array(*rows: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.array(rows, np.uint32)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gpt2", {"merges": array((0, 1 << 30))}, "names a piece that is not there"),
        ("gpt2", {"merges": array((7, 8), (7, 8))}, "makes no piece|there twice"),
        ("gpt2", {"merges": array((1 << 31, 0))}, "names a piece that is not there"),
        ("legacy", {"merges": array((0, 0))}, "unknown or a byte piece"),
        ("gpt2", {"added": array((1 << 30, 0))}, "added tokens are not in order"),
        ("gpt2", {"added": array((3, 0), (3, 0))}, "added tokens are not in order"),
        ("gpt2", {"added": array((3, 64))}, "sets an unknown flag"),
        ("gpt2", {"pre_tokenizer": 1}, "pre-tokenizer does not fit"),
        ("gpt2", {"pre_tokenizer": 77}, "pre-tokenizer does not fit"),
        ("legacy", {"pre_tokenizer": PreTokenizer.GPT2}, "pre-tokenizer does not fit"),
        ("legacy", {"pre_tokenizer": PreTokenizer.SPACES}, "has no metaspace"),
        ("legacy", {"prefix_first": True}, "has no metaspace"),
        ("legacy", {"ignore_merges": True}, "ignores merges"),
        ("legacy", {"kind": 3}, "unknown kind"),
        ("legacy", {"strip": 9}, "strips in an unknown way"),
        ("gpt2", {"strip": Strip.SPACE}, "rules for characters"),
        ("llama3", {"dummy_prefix": True}, "puts a space in front"),
        ("gpt2", {"kind": TokenizerKind.SENTENCEPIECE}, "SentencePiece does not have"),
    ],
)
def test_c_rejects_what_contradicts_itself(
    kind: str, changes: dict[str, Any], message: str
) -> None:
    vocabulary = replace(pair(kind).vocabulary, **changes)
    with pytest.raises(UserError, match=message):
        FastTokenizer.of(vocabulary)


def test_c_rejects_an_added_token_that_is_no_text() -> None:
    vocabulary = pair("gpt2").vocabulary
    pieces = [*vocabulary.pieces]
    pieces[int(vocabulary.added[-1, 0])] = b"\xff"
    with pytest.raises(UserError, match="is an added token and not UTF-8"):
        FastTokenizer.of(replace(vocabulary, pieces=pieces))


@settings(max_examples=300)
@given(data=st.data())
def test_any_arrays_are_rejected_or_work(data: st.DataObject) -> None:
    """Random arrays; test_c_program.py tests damaged files under sanitizers."""
    vocabulary = pair_of_bytes()
    count = len(vocabulary.pieces)
    ids = st.one_of(st.integers(0, count), st.integers(0, 2**32 - 1))
    rows = st.lists(st.tuples(ids, ids), max_size=6)
    types = st.lists(st.integers(0, 7), min_size=count, max_size=count)
    found = replace(
        vocabulary,
        merges=tokenizer_json.pairs(data.draw(rows)),
        added=tokenizer_json.pairs(data.draw(rows)),
        types=np.array(data.draw(types), np.uint8),
        pre_tokenizer=data.draw(st.integers(0, 6)),
        strip=data.draw(st.integers(0, 3)),
        unk_id=data.draw(st.integers(-1, 3)),
    )
    try:
        tokenizer = FastTokenizer.of(found)
    except UserError:
        return
    tokenizer.decode(tokenizer.encode("the cat <sep> 'll"))


def pair_of_bytes() -> Vocabulary:
    pieces = [b"<unk>", b"<s>", b"the", b"th", b"t", b"h", b"e", b"\xe2", b"\x96", b"\xe2\x96"]
    return Vocabulary(
        pieces,
        np.zeros(len(pieces), np.float32),
        np.ones(len(pieces), np.uint8),
        unk_id=-1,
        dummy_prefix=False,
        byte_fallback=False,
        kind=TokenizerKind.BYTE_LEVEL,
        pre_tokenizer=PreTokenizer.GPT2,
    )


def test_rejects_what_is_not_utf8(both: Pair) -> None:
    ids, count = ffi.new("int32_t[]", 100), ffi.new("size_t *")
    for data in (b"a\xff", b"\xe2\x96", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
        for function in (lib.sl_encode, lib.sl_encode_special):
            status = function(both.ours.handle, ffi.NULL, data, len(data), ids, 100, count)
            assert status == lib.SL_ERROR_TEXT


# ---- References ----------------------------------------------------------------------------------


def test_the_table_of_characters_is_that_of_tokenizers() -> None:
    script = ROOT / "csrc" / "tokenizer" / "make_unicode.py"
    made = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    table = (script.parent / "unicode_table.c").read_text(encoding="utf-8")
    if made.stdout.splitlines()[0] != table.splitlines()[0]:
        pytest.skip("another version of tokenizers is installed than the table is made from")
    assert made.stdout == table


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "mpt", "refact", "starcoder", "command-r"])
def test_gives_the_ids_of_llama_cpp(name: str) -> None:
    """The strings and ids that llama.cpp's own tests compare."""
    gguf = pytest.importorskip("gguf")
    folder = Path(os.environ.get("LLAMA_CPP_VOCABS", "absent"))
    path = folder / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip("set LLAMA_CPP_VOCABS to the folder models/ of llama.cpp")
    fields = gguf.GGUFReader(path).fields
    values = {
        key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.ggml")
    }
    ours = FastTokenizer.of(gguf_bpe.read(name, values))
    given = path.with_name(f"{path.name}.inp").read_bytes().decode()
    expected = path.with_name(f"{path.name}.out").read_text().splitlines()
    for text, ids in zip(given.split("\n__ggml_vocab_test__\n"), expected, strict=True):
        assert ours.encode(text) == [int(index) for index in ids.split()]
