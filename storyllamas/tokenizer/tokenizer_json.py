"""tokenizer.json: byte-pair encodings as the `tokenizers` package of Hugging Face writes them.

It reads and writes those of LlamaTokenizer and LlamaTokenizerFast, with each of their conventions
for spaces, and byte-level ones with the pre-tokenizers of GPT-2, Llama 3 and SmolLM, without the
package. huggingface.py writes a SentencePiece tokenizer as a tokenizer.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storyllamas.errors import UserError
from storyllamas.vocabulary import (
    SPACE,
    Added,
    PieceType,
    PreTokenizer,
    Strip,
    TokenizerKind,
    Vocabulary,
    no_pairs,
)

Json = Mapping[str, Any]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The regular expressions of pre-tokenizers that csrc/tokenizer/pretokenize.c matches."""

SUPPORTED = (
    "ByteLevel (GPT-2), Split by Llama 3's regular expression before ByteLevel, Digits before "
    "ByteLevel (SmolLM), Metaspace, and none after Prepend and Replace (Llama 2)"
)

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
RESTORE = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
PREPEND = {"type": "Prepend", "prepend": SPACE}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}

FLAGS = {
    "special": Added.SPECIAL,
    "lstrip": Added.LSTRIP,
    "rstrip": Added.RSTRIP,
    "normalized": Added.NORMALIZED,
    "single_word": Added.SINGLE_WORD,
}

BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def _byte_alphabet() -> dict[int, str]:
    """Return the character that byte-level pieces write for each byte, as GPT-2 chose them."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = {byte: chr(byte) for byte in shown}
    return alphabet | {byte: chr(256 + index) for index, byte in enumerate(hidden)}


ALPHABET = _byte_alphabet()
BYTES = {character: byte for byte, character in ALPHABET.items()}


def spell(piece: bytes) -> str:
    """Write a byte-level piece in the alphabet for bytes."""
    return "".join(ALPHABET[byte] for byte in piece)


def unspell(text: str) -> bytes | None:
    """Return the bytes of a piece in the alphabet for bytes; None if a character is not in it."""
    values = [BYTES.get(character) for character in text]
    return None if None in values else bytes(value for value in values if value is not None)


# ---- Components as rules -------------------------------------------------------------------------


def _steps(component: Json | None, part: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer, pre-tokenizer or decoder, with sequences flattened."""
    if component is None:
        return []
    if component.get("type") == "Sequence":
        return [step for each in component[part] for step in _steps(each, part)]
    return [dict(component)]


@dataclass(frozen=True)
class _Rules:
    """The components of a tokenizer.json as fields of `Vocabulary`."""

    kind: TokenizerKind
    pre_tokenizer: PreTokenizer
    dummy_prefix: bool
    strip: Strip = Strip.NONE
    metaspace: bool = False
    prefix_first: bool = False


def _reject(where: str, part: str, steps: Iterable[Json]) -> UserError:
    names = ", ".join(str(step.get("type")) for step in steps) or "none"
    return UserError(
        f"the {part} of the tokenizer in {where} ({names}) cannot be represented: only these can, "
        f"{SUPPORTED}"
    )


def _rules(where: str, data: Json) -> _Rules:
    pre = _steps(data.get("pre_tokenizer"), "pretokenizers")
    if any(step.get("type") == "ByteLevel" for step in pre):
        return _byte_level(where, data, pre)
    return _characters(where, data, pre)


def _byte_level(where: str, data: Json, pre: list[dict[str, Any]]) -> _Rules:
    *before, last = pre
    prefix, regex = bool(last.get("add_prefix_space", True)), bool(last.get("use_regex", True))
    found = None
    if last.get("type") == "ByteLevel" and not before and regex:
        found = PreTokenizer.GPT2
    elif last.get("type") == "ByteLevel" and len(before) == 1 and not prefix:
        found = _before_bytes(before[0], regex)
    if found is None:
        raise _reject(where, "pre-tokenizer", pre)
    if normalizer := _steps(data.get("normalizer"), "normalizers"):
        raise _reject(where, "normalizer", normalizer)
    decoder = _steps(data.get("decoder"), "decoders")
    if [step.get("type") for step in decoder] != ["ByteLevel"]:
        raise _reject(where, "decoder", decoder)
    return _Rules(TokenizerKind.BYTE_LEVEL, found, prefix)


def _before_bytes(step: Json, regex: bool) -> PreTokenizer | None:
    """Return the pre-tokenizer of a step followed by ByteLevel; None if it is not supported."""
    if step.get("type") == "Digits" and regex and step.get("individual_digits"):
        return PreTokenizer.SMOLLM
    if step.get("type") == "Split" and not regex and not step.get("invert"):
        pattern = step.get("pattern", {}).get("Regex")
        if step.get("behavior") == "Isolated":
            return {GPT2: PreTokenizer.GPT2, LLAMA3: PreTokenizer.LLAMA3}.get(pattern)
    return None


def _characters(where: str, data: Json, pre: list[dict[str, Any]]) -> _Rules:
    normalizer = _steps(data.get("normalizer"), "normalizers")
    decoder = _steps(data.get("decoder"), "decoders")
    if pre and [step.get("type") for step in pre] != ["Metaspace"]:
        raise _reject(where, "pre-tokenizer", pre)
    if not pre:
        if normalizer not in ([REPLACE], [PREPEND, REPLACE]):
            raise _reject(where, "normalizer", normalizer)
        strip = _strip(where, decoder)
        return _Rules(
            TokenizerKind.BPE, PreTokenizer.NONE, dummy_prefix=len(normalizer) == 2, strip=strip
        )
    if normalizer:
        raise _reject(where, "normalizer", normalizer)
    scheme = _scheme(pre[0])
    if pre[0].get("replacement", SPACE) != SPACE or scheme not in ("first", "always", "never"):
        raise _reject(where, "pre-tokenizer", pre)
    return _Rules(
        TokenizerKind.BPE,
        PreTokenizer.SPACES if pre[0].get("split", True) else PreTokenizer.NONE,
        dummy_prefix=scheme != "never",
        strip=_strip(where, decoder),
        metaspace=True,
        prefix_first=scheme == "first",
    )


def _scheme(metaspace: Json) -> str:
    """Return when a Metaspace adds a space in front; older files have `add_prefix_space`."""
    always = "always" if metaspace.get("add_prefix_space", True) else "never"
    return str(metaspace.get("prepend_scheme", always))


def _strip(where: str, decoder: list[dict[str, Any]]) -> Strip:
    if [step.get("type") for step in decoder] == ["Metaspace"]:
        return Strip.NONE if _scheme(decoder[0]) == "never" else Strip.FIRST
    bytes_ = [RESTORE, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if decoder == bytes_:
        return Strip.NONE
    if decoder == [*bytes_, STRIP]:
        return Strip.SPACE
    raise _reject(where, "decoder", decoder)


# ---- Import --------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a folder that transformers loads") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object")
    return data


def from_json(where: str, data: Json) -> Vocabulary:
    """Return the tokenizer of a tokenizer.json, without the ids of BOS, EOS and padding.

    Args:
        where: the file, for messages.
        data: its content.

    Raises:
        UserError: it is damaged, or has a rule that cannot be represented.
    """
    try:
        return _from_json(where, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the tokenizer in {where} is damaged: {error!r}") from None


def _from_json(where: str, data: Json) -> Vocabulary:
    model: Json = data["model"]
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"the tokenizer in {where} is {model['type']}: only BPE can be imported")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(
                f"{name} of the tokenizer in {where} is {model[name]!r}, which cannot be "
                "represented: it must be null"
            )
    rules = _rules(where, data)
    ids: dict[str, int] = model["vocab"]
    unk_token = model.get("unk_token")
    if unk_token is not None and unk_token not in ids:
        raise UserError(f"the tokenizer in {where} has no piece {unk_token!r}, its unknown token")
    tokens = sorted(data.get("added_tokens") or [], key=lambda token: int(token["id"]))
    table = _Table(where, rules.kind, ids, -1 if unk_token is None else ids[unk_token])
    table.add(tokens)
    has_bytes = PieceType.BYTE in table.types
    if bool(model.get("ignore_merges")) and rules.kind == TokenizerKind.BPE:
        raise UserError(f"the tokenizer in {where} ignores merges, which only byte-level ones can")
    return Vocabulary(
        pieces=table.pieces,
        scores=np.zeros(len(table.pieces), np.float32),
        types=np.array(table.types, np.uint8),
        unk_id=table.unk_id,
        bos_id=-1,
        eos_id=-1,
        byte_fallback=bool(model.get("byte_fallback")) and has_bytes,
        merges=_merges(where, ids, model["merges"]),
        added=pairs(table.added),
        fuse_unk=bool(model.get("fuse_unk")),
        ignore_merges=bool(model.get("ignore_merges")),
        **vars(rules),
    )


class _Table:
    """The pieces of a tokenizer.json by id, with their types."""

    def __init__(self, where: str, kind: TokenizerKind, ids: Mapping[str, int], unk_id: int):
        self.where, self.kind, self.ids, self.unk_id = where, kind, ids, unk_id
        self.pieces: list[bytes] = []
        self.types: list[PieceType] = []
        self.added: list[tuple[int, int]] = []
        self._holes = set[int]()
        for text, index in sorted(ids.items(), key=lambda item: item[1]):
            self._put(index, *self._piece(text))
        if unk_id >= 0:
            self.types[unk_id] = PieceType.UNKNOWN

    def _piece(self, text: str) -> tuple[bytes, PieceType]:
        if self.kind == TokenizerKind.BPE:
            is_byte = BYTE_PIECE.fullmatch(text)
            return text.encode(), PieceType.BYTE if is_byte else PieceType.NORMAL
        found = unspell(text)
        return (text.encode(), PieceType.UNUSED) if found is None else (found, PieceType.NORMAL)

    def _put(self, index: int, piece: bytes, kind: PieceType) -> None:
        """Put a piece at an id; free ids before it become pieces without text."""
        if not 0 <= index < 1 << 20:
            raise UserError(f"the tokenizer in {self.where} has an id {index}, which is too high")
        for hole in range(len(self.pieces), index + 1):
            self.pieces.append(hole_piece(hole))
            self.types.append(PieceType.CONTROL)
            self._holes.add(hole)
        if index not in self._holes:
            raise UserError(f"the tokenizer in {self.where} has two pieces of id {index}")
        self._holes.remove(index)
        self.pieces[index], self.types[index] = piece, kind

    def add(self, tokens: Iterable[Json]) -> None:
        """Add the added tokens, sorted by id."""
        for token in tokens:
            index, text = int(token["id"]), str(token["content"])
            flags = Added(0)
            for name, flag in FLAGS.items():
                flags |= flag if token.get(name) else Added(0)
            kind = PieceType.CONTROL if Added.SPECIAL in flags else PieceType.USER_DEFINED
            if text not in self.ids:
                flags |= Added.APART
                self._put(index, text.encode(), kind)
            else:
                flags |= self._check_known(index, text)
            self.types[index] = PieceType.UNKNOWN if index == self.unk_id else kind
            self.added.append((index, int(flags)))

    def _check_known(self, index: int, text: str) -> Added:
        """Check an added token that is also in the vocabulary; return its flags."""
        if self.ids[text] != index:
            raise UserError(f"the tokenizer in {self.where} has two ids for {text!r}")
        if self.types[index] == PieceType.UNUSED:
            return Added.APART
        if self.pieces[index] != text.encode():
            raise UserError(
                f"the added token {text!r} in {self.where} is also a piece of other bytes, which "
                "cannot be represented"
            )
        return Added(0)


def hole_piece(index: int) -> bytes:
    """Return the text of the piece of a free id, which no text is encoded to."""
    return b"<no piece %d>" % index


def pairs(rows: list[tuple[int, int]]) -> npt.NDArray[np.uint32]:
    """Return merges or added tokens as an array [count, 2]."""
    return np.array(rows, np.uint32) if rows else no_pairs()


def _merges(where: str, ids: Mapping[str, int], merges: Iterable[Any]) -> npt.NDArray[np.uint32]:
    """Return the ids of merges [merges, 2]; a repeated merge has its last rank."""
    found: dict[tuple[int, int], None] = {}
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        for text in (left, right, left + right):
            if text not in ids:
                raise UserError(
                    f"the merge of {left!r} and {right!r} in {where} has no piece {text!r}"
                )
        pair = (ids[left], ids[right])
        found.pop(pair, None)
        found[pair] = None
    return pairs(list(found))


# ---- Export --------------------------------------------------------------------------------------


def to_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the normalizer, pre-tokenizer, decoder, added tokens and model of a tokenizer.json."""
    texts = [piece_text(vocabulary, index) for index in range(len(vocabulary.pieces))]
    apart = {int(index) for index, flags in vocabulary.added if flags & Added.APART}
    unk = vocabulary.unk_id
    return {
        "added_tokens": [
            {"id": int(index), "content": texts[index]}
            | {name: bool(flags & flag) for name, flag in FLAGS.items()}
            for index, flags in vocabulary.added
        ],
        **_components(vocabulary),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": texts[unk] if unk >= 0 else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": vocabulary.fuse_unk,
            "byte_fallback": vocabulary.byte_fallback,
            "ignore_merges": vocabulary.ignore_merges,
            "vocab": {text: index for index, text in enumerate(texts) if index not in apart},
            "merges": [[texts[left], texts[right]] for left, right in vocabulary.merges],
        },
    }


def piece_text(vocabulary: Vocabulary, index: int) -> str:
    """Return a piece as tokenizer.json and GGUF write it."""
    piece = vocabulary.pieces[index]
    plain = vocabulary.kind == TokenizerKind.BPE or vocabulary.types[index] == PieceType.UNUSED
    if plain or index in vocabulary.added[:, 0]:
        return piece.decode()
    return spell(piece)


def _components(vocabulary: Vocabulary) -> dict[str, Any]:
    if vocabulary.kind == TokenizerKind.BYTE_LEVEL:
        return {
            "normalizer": None,
            "pre_tokenizer": _byte_pre_tokenizer(vocabulary),
            "decoder": _bytes(use_regex=True),
        }
    metaspace = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": _prepend_scheme(vocabulary),
        "split": vocabulary.pre_tokenizer == PreTokenizer.SPACES,
    }
    normalizers = [PREPEND] * vocabulary.dummy_prefix + [REPLACE]
    decoders = [RESTORE, {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [STRIP] * (vocabulary.strip == Strip.SPACE)
    first = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": True}
    return {
        "normalizer": None
        if vocabulary.metaspace
        else {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": metaspace if vocabulary.metaspace else None,
        "decoder": first
        if vocabulary.strip == Strip.FIRST
        else {"type": "Sequence", "decoders": decoders},
    }


def _prepend_scheme(vocabulary: Vocabulary) -> str:
    if not vocabulary.dummy_prefix:
        return "never"
    return "first" if vocabulary.prefix_first else "always"


def _bytes(use_regex: bool, add_prefix_space: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _byte_pre_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    if vocabulary.pre_tokenizer == PreTokenizer.GPT2:
        return _bytes(use_regex=True, add_prefix_space=vocabulary.dummy_prefix)
    digits = {"type": "Digits", "individual_digits": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": LLAMA3},
        "behavior": "Isolated",
        "invert": False,
    }
    is_llama3 = vocabulary.pre_tokenizer == PreTokenizer.LLAMA3
    before, last = (split, _bytes(use_regex=False)) if is_llama3 else (digits, _bytes(True))
    return {"type": "Sequence", "pretokenizers": [before, last]}
