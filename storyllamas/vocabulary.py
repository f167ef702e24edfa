"""The pieces of a tokenizer, their merge priorities and the ids of special pieces."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class PieceType(IntEnum):
    """The type of a tokenizer piece; values are those of SentencePiece's model file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The data of a SentencePiece BPE tokenizer that encoding and decoding need.

    Attributes:
        pieces: UTF-8 text of each id, U+2581 for a space; a byte piece is written `<0xNN>`.
        scores: merge priority of each id; the highest merges first.
        types: a `PieceType` for each id.
        unk_id: the unknown piece, or -1.
        bos_id: the piece that begins a story, or -1.
        eos_id: the piece that ends a story, or -1.
        pad_id: the padding piece, or -1.
        dummy_prefix: a space is added in front of the text.
        byte_fallback: a character that no piece covers becomes its UTF-8 bytes.
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
