"""The pieces of a tokenizer, their merge priorities and the ids of special pieces."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

SPACE = "\u2581"
"""The character that stands for a space in pieces that are not byte-level."""


class PieceType(IntEnum):
    """The type of a tokenizer piece; values are those of SentencePiece's model file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class TokenizerKind(IntEnum):
    """The merge rule: by score (SentencePiece), or by rank as in a Hugging Face tokenizer.json."""

    SENTENCEPIECE = 0
    BPE = 1
    BYTE_LEVEL = 2


TrainableKind: TypeAlias = Literal["sentencepiece", "byte_level"]
"""The kinds that the workflow trains, by the names that `tokenizer.kind` in params.yaml has."""


class PreTokenizer(IntEnum):
    """The pre-tokenizer, which splits a text into words. Merges stay within a word."""

    NONE = 0
    SPACES = 1
    GPT2 = 2
    LLAMA3 = 3
    SMOLLM = 4


class Strip(IntEnum):
    """The spaces that decoding drops: none, the first one, or all of the first piece."""

    NONE = 0
    SPACE = 1
    FIRST = 2


class Added(IntFlag):
    """Flags of an added token; storyllamas.h explains them."""

    SPECIAL = 1
    LSTRIP = 2
    RSTRIP = 4
    NORMALIZED = 8
    SINGLE_WORD = 16
    APART = 32


def no_pairs() -> npt.NDArray[np.uint32]:
    """Return an empty list of merges or added tokens, [0, 2]."""
    return np.empty((0, 2), np.uint32)


@dataclass(frozen=True)
class Vocabulary:
    """The data of a BPE tokenizer that encoding and decoding need.

    Attributes:
        pieces: text of each id; UTF-8 with U+2581 for a space and `<0xNN>` for a byte, but the
            bytes themselves for `BYTE_LEVEL`.
        scores: merge priority of each id of `SENTENCEPIECE`, the highest merges first; no meaning
            for the other kinds.
        types: a `PieceType` for each id.
        unk_id: the unknown piece, or -1.
        bos_id: the piece that begins a story, or -1.
        eos_id: the piece that ends a story, or -1.
        pad_id: the padding piece, or -1.
        dummy_prefix: a space is added in front of the text.
        byte_fallback: a character that no piece covers becomes its UTF-8 bytes.
        adds_bos: a prompt gets the piece that begins a story in front.
        extra_eos_ids: pieces besides eos_id that end a sequence, such as one that ends a turn of a
            chat; rising.
        chat_template: the text of a conversation as a Jinja template; empty: there is none.
        kind: how pieces merge. What follows is for `BPE` and `BYTE_LEVEL`.
        merges: [merges, 2] ids of neighbours that merge, by rank.
        added: [added tokens, 2] id and `Added` flags, sorted by id.
        pre_tokenizer: how a text is split into words.
        strip: the spaces that decoding drops.
        metaspace: spaces become U+2581 after added tokens are found, and the dummy prefix is added
            to each text between two of them that does not begin with a space.
        prefix_first: the dummy prefix is added to the start of the whole text only.
        fuse_unk: consecutive unknown characters become one unknown piece.
        ignore_merges: a word that is a piece is not merged.
    """

    pieces: list[bytes]
    scores: npt.NDArray[np.float32]
    types: npt.NDArray[np.uint8]
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    dummy_prefix: bool = True
    byte_fallback: bool = True
    adds_bos: bool = True
    extra_eos_ids: tuple[int, ...] = ()
    chat_template: str = ""
    kind: TokenizerKind = TokenizerKind.SENTENCEPIECE
    merges: npt.NDArray[np.uint32] = field(default_factory=no_pairs)
    added: npt.NDArray[np.uint32] = field(default_factory=no_pairs)
    pre_tokenizer: PreTokenizer = PreTokenizer.NONE
    strip: Strip = Strip.NONE
    metaspace: bool = False
    prefix_first: bool = False
    fuse_unk: bool = False
    ignore_merges: bool = False
