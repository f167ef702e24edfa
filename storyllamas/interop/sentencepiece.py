"""Tokenizers of other programs: the checks before an import, and SentencePiece's model file.

The model file is a protocol buffer; its schema comes with the sentencepiece package.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from storyllamas.errors import UserError
from storyllamas.vocabulary import PieceType, Vocabulary

SPACE = "\u2581"
PIECE_TYPES = tuple(PieceType)
MERGEABLE = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)


def package(name: str, distribution: str) -> Any:
    """Import a module that only conversions need.

    Args:
        name: the module.
        distribution: the package that installs it, for the message.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{distribution} is not installed: run `pip install 'storyllamas[convert]'`"
        ) from None


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
    if not count == len(vocabulary.scores) == len(vocabulary.types):
        raise UserError(
            f"the tokenizer in {where} has {count} pieces, {len(vocabulary.scores)} scores and "
            f"{len(vocabulary.types)} types"
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


def from_sentencepiece(where: str, data: bytes) -> Vocabulary:
    """Read the tokenizer in the bytes of a SentencePiece model file.

    Args:
        where: the file, for messages.
        data: its bytes.

    Raises:
        UserError: the data is not a model file, or the model is not BPE on unchanged text.
    """
    schema = package("sentencepiece.sentencepiece_model_pb2", "protobuf")
    message = package("google.protobuf.message", "protobuf")
    model = schema.ModelProto()
    try:
        model.ParseFromString(data)
    except (message.DecodeError, UnicodeDecodeError):
        raise UserError(f"{where} is not a SentencePiece model, or is cut short") from None
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    differs = {
        "model_type": trainer.model_type != trainer.BPE,
        "normalizer_spec.precompiled_charsmap": bool(normalizer.precompiled_charsmap),
        "normalizer_spec.remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "normalizer_spec.escape_whitespaces": not normalizer.escape_whitespaces,
        "trainer_spec.treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "denormalizer_spec": bool(model.denormalizer_spec.precompiled_charsmap),
    }
    for name, is_different in differs.items():
        if is_different:
            raise UserError(
                f"the tokenizer {where} has another {name} than Llama's: only BPE without "
                "normalization can be imported"
            )
    vocabulary = Vocabulary(
        pieces=[piece.piece.encode(errors="surrogateescape") for piece in model.pieces],
        scores=np.array([piece.score for piece in model.pieces], np.float32),
        types=np.array([piece.type for piece in model.pieces], np.uint8),
        unk_id=trainer.unk_id,
        bos_id=trainer.bos_id,
        eos_id=trainer.eos_id,
        pad_id=trainer.pad_id,
        dummy_prefix=normalizer.add_dummy_prefix,
        byte_fallback=trainer.byte_fallback,
    )
    return check(where, vocabulary)


def to_sentencepiece(vocabulary: Vocabulary) -> bytes:
    """Return the bytes of the SentencePiece model file of a tokenizer."""
    schema = package("sentencepiece.sentencepiece_model_pb2", "protobuf")
    model = schema.ModelProto()
    for piece, score, kind in zip(
        vocabulary.pieces, vocabulary.scores, vocabulary.types, strict=True
    ):
        model.pieces.add(piece=piece.decode(), score=float(score), type=int(kind))
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(vocabulary.pieces)
    trainer.byte_fallback = vocabulary.byte_fallback
    for role in ("unk", "bos", "eos", "pad"):
        index = getattr(vocabulary, f"{role}_id")
        setattr(trainer, f"{role}_id", index)
        if index >= 0:
            setattr(trainer, f"{role}_piece", vocabulary.pieces[index].decode())
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = vocabulary.dummy_prefix
    normalizer.remove_extra_whitespaces = False
    data: bytes = model.SerializeToString(deterministic=True)
    return data
