"""The checks of an imported tokenizer: the C engine rejects what fails them."""

from __future__ import annotations

import numpy as np

from storyllamas.errors import UserError
from storyllamas.vocabulary import PieceType, Vocabulary

PIECE_TYPES = tuple(PieceType)

MERGEABLE = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)
"""The types of pieces that merges make; two of them must not have the same text."""


def byte_piece(byte: int) -> bytes:
    """Return the text of the piece of a byte, 0 to 255."""
    return b"<0x%02X>" % byte


BYTE_PIECES = frozenset(map(byte_piece, range(256)))


def check(where: str, vocabulary: Vocabulary) -> Vocabulary:
    """Return a tokenizer unchanged if the C engine accepts it.

    Args:
        where: the file, for messages.
        vocabulary: the tokenizer.

    Raises:
        UserError: the C engine would reject the tokenizer; the message names the piece.
    """
    count = len(vocabulary.pieces)
    if not (count,) == vocabulary.scores.shape == vocabulary.types.shape:
        raise UserError(
            f"the tokenizer in {where} has {count} pieces, {vocabulary.scores.size} scores and "
            f"{vocabulary.types.size} types: there must be as many of each, in one list"
        )
    seen: set[bytes] = set()
    byte_pieces: set[bytes] = set()
    for index, piece in enumerate(vocabulary.pieces):
        _check_piece(where, vocabulary, index)
        kind = vocabulary.types[index]
        if kind in MERGEABLE or kind == PieceType.BYTE:
            if piece in seen:
                raise UserError(
                    f"piece {index} of the tokenizer in {where}, {piece.decode()!r}, occurs twice"
                )
            seen.add(piece)
        if kind == PieceType.BYTE:
            byte_pieces.add(piece)
    for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
        value = getattr(vocabulary, name)
        if not -1 <= value < len(vocabulary.pieces):
            raise UserError(
                f"{name} of the tokenizer in {where} is {value} and must be -1 or the id of one "
                f"of its {count} pieces"
            )
    missing = sorted(BYTE_PIECES - byte_pieces)
    if vocabulary.byte_fallback and missing:
        raise UserError(
            f"the tokenizer in {where} has no piece {missing[0].decode()} of type byte: it needs "
            "all 256, or none"
        )
    unk_id = vocabulary.unk_id
    if unk_id >= 0 and vocabulary.types[unk_id] != PieceType.UNKNOWN:
        raise UserError(
            f"unk_id of the tokenizer in {where} is {unk_id}, but this piece, "
            f"{vocabulary.pieces[unk_id].decode()!r}, is not of type unknown"
        )
    if not vocabulary.byte_fallback and unk_id < 0:
        raise UserError(
            f"the tokenizer in {where} has neither byte pieces nor an unknown piece: it cannot "
            "encode every text"
        )
    if not np.isfinite(vocabulary.scores).all():
        raise UserError(f"the tokenizer in {where} has a score that is not a finite number")
    return vocabulary


def _check_piece(where: str, vocabulary: Vocabulary, index: int) -> None:
    """Check a piece by itself, without comparing it with the others."""
    piece, kind = vocabulary.pieces[index], int(vocabulary.types[index])
    name = f"piece {index} of the tokenizer in {where}"
    try:
        piece.decode()
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8: {piece!r}") from None
    if kind not in PIECE_TYPES:
        raise UserError(f"{name} has type {kind} and must have 1 to 6")
    if not piece:
        raise UserError(f"{name} is empty")
    if kind == PieceType.UNKNOWN and index != vocabulary.unk_id:
        raise UserError(f"{name} is a second unknown piece")
    if kind == PieceType.BYTE and piece not in BYTE_PIECES:
        raise UserError(
            f"{name}, {piece.decode()!r}, is of type byte and must be one of <0x00> … <0xFF>"
        )
