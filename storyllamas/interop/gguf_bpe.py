"""The byte-level tokenizers of GGUF: `tokenizer.ggml.model` gpt2, whose `pre` names the regex."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from storyllamas.errors import UserError
from storyllamas.tokenizer.tokenizer_json import pairs, piece_text, unspell
from storyllamas.vocabulary import (
    Added,
    PieceType,
    PreTokenizer,
    TokenizerKind,
    Vocabulary,
)

PREFIX = "tokenizer.ggml."

PRE = {
    "gpt-2": PreTokenizer.GPT2,
    "mpt": PreTokenizer.GPT2,
    "llama-bpe": PreTokenizer.LLAMA3,
    "llama3": PreTokenizer.LLAMA3,
    "llama-v3": PreTokenizer.LLAMA3,
    "smollm": PreTokenizer.SMOLLM,
    "refact": PreTokenizer.SMOLLM,
    "starcoder": PreTokenizer.SMOLLM,
    "command-r": PreTokenizer.SMOLLM,
}
"""The pre-tokenizer of each name; `write` takes the first name of a pre-tokenizer."""

ADDED = (PieceType.CONTROL, PieceType.USER_DEFINED)
"""The types of added tokens."""


def read(where: str, values: Mapping[str, Any]) -> Vocabulary:
    """Return the tokenizer of a GGUF file, without the ids of BOS, EOS and padding.

    Args:
        where: the file, for messages.
        values: its fields.

    Raises:
        UserError: a field is missing or damaged, or the pre-tokenizer is not one of `PRE`.
    """
    pre = values.get(f"{PREFIX}pre")
    if pre not in PRE:
        raise UserError(
            f"{PREFIX}pre in {where} is {pre!r}, which cannot be imported; these names can: "
            f"{', '.join(PRE)}"
        )
    for name in ("tokens", "token_type", "merges"):
        if PREFIX + name not in values:
            raise UserError(f"{where} has no {PREFIX}{name}: it is damaged or has no tokenizer")
    try:
        return _read(where, values, PRE[pre])
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"the tokenizer in {where} is damaged: {error}") from None


def _read(where: str, values: Mapping[str, Any], pre: PreTokenizer) -> Vocabulary:
    texts: list[str] = values[f"{PREFIX}tokens"]
    unk_id = int(values.get(f"{PREFIX}unknown_token_id", -1))
    pieces, types, added = [], [], []
    for index, (text, number) in enumerate(zip(texts, values[f"{PREFIX}token_type"], strict=True)):
        piece, kind = unspell(text), PieceType(number)
        if kind in ADDED:
            flags = Added.SPECIAL if kind == PieceType.CONTROL else Added(0)
            flags |= Added(0) if piece == text.encode() else Added.APART
            added.append((index, int(flags)))
            piece = text.encode()
        elif piece is None:
            piece, kind = text.encode(), PieceType.UNUSED
        elif kind == PieceType.UNKNOWN and index != unk_id:
            kind = PieceType.UNUSED
        pieces.append(piece)
        types.append(kind)
    is_unknown = 0 <= unk_id < len(types) and types[unk_id] == PieceType.UNKNOWN
    return Vocabulary(
        pieces=pieces,
        scores=np.zeros(len(pieces), np.float32),
        types=np.array(types, np.uint8),
        unk_id=unk_id if is_unknown else -1,
        bos_id=-1,
        eos_id=-1,
        dummy_prefix=False,
        byte_fallback=False,
        kind=TokenizerKind.BYTE_LEVEL,
        merges=_merges(where, texts, values[f"{PREFIX}merges"]),
        added=pairs(added),
        pre_tokenizer=pre,
        ignore_merges=pre == PreTokenizer.LLAMA3,
    )


def _merges(where: str, texts: list[str], merges: list[str]) -> Any:
    """Return the ids of merges, [merges, 2]; a repeated one has its first rank, as in llama.cpp."""
    ids = {text: index for index, text in enumerate(texts)}
    found: dict[tuple[int, int], None] = {}
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise UserError(f"the merge {merge!r} in {where} names a piece that the file lacks")
        found.setdefault((ids[left], ids[right]))
    return pairs(list(found))


def write(writer: Any, vocabulary: Vocabulary) -> None:
    """Add the fields of a byte-level tokenizer to a GGUF writer.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    is_llama3 = vocabulary.pre_tokenizer == PreTokenizer.LLAMA3
    if vocabulary.dummy_prefix or vocabulary.ignore_merges != is_llama3:
        raise UserError(
            "llama.cpp has no tokenizer such as this one: its byte-level tokenizers put no space "
            "in front, and ignore merges with the pre-tokenizer of Llama 3 only"
        )
    texts = [piece_text(vocabulary, index) for index in range(len(vocabulary.pieces))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(
        next(name for name, pre in PRE.items() if pre == vocabulary.pre_tokenizer)
    )
    writer.add_token_list(texts)
    writer.add_token_types(vocabulary.types.tolist())
    writer.add_token_merges([f"{texts[left]} {texts[right]}" for left, right in vocabulary.merges])
