"""Tokenizers of other programs: what is checked before one is taken over, and SentencePiece's file.

SentencePiece's model file is a protocol buffer whose schema comes with the sentencepiece package.
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
    """Import a package that only conversions need.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{distribution} is not installed: run `pip install 'storyllamas[convert]'`"
        ) from None


def byte_piece(byte: int) -> bytes:
    """How the piece of a byte is spelt."""
    return b"<0x%02X>" % byte


def check(where: str, vocabulary: Vocabulary) -> Vocabulary:
    """Refuse a tokenizer that the C engine would, naming the piece; return it otherwise."""
    count = len(vocabulary.pieces)
    if not count == len(vocabulary.scores) == len(vocabulary.types):
        raise UserError(
            f"the tokenizer in {where} has {count} pieces, {len(vocabulary.scores)} scores and "
            f"{len(vocabulary.types)} types"
        )
    seen: set[bytes] = set()
    for index, piece in enumerate(vocabulary.pieces):
        if vocabulary.types[index] not in PIECE_TYPES:
            raise UserError(
                f"piece {index} of the tokenizer in {where} has type {vocabulary.types[index]}: "
                "use 1 to 6"
            )
        kind = PieceType(vocabulary.types[index])
        if not piece:
            raise UserError(f"piece {index} of the tokenizer in {where} is empty")
        if kind == PieceType.UNKNOWN and index != vocabulary.unk_id:
            raise UserError(f"piece {index} of the tokenizer in {where} is a second unknown piece")
        if kind in MERGEABLE or kind == PieceType.BYTE:
            if piece in seen:
                raise UserError(
                    f"piece {index} of the tokenizer in {where}, {piece.decode()!r}, is there twice"
                )
            seen.add(piece)
    for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
        value = getattr(vocabulary, name)
        if not -1 <= value < len(vocabulary.pieces):
            raise UserError(f"{name} of the tokenizer in {where} is {value}: it has no such piece")
    missing = [byte for byte in range(256) if byte_piece(byte) not in seen]
    if vocabulary.byte_fallback and missing:
        raise UserError(f"the tokenizer in {where} has no piece {byte_piece(missing[0]).decode()}")
    if not np.isfinite(vocabulary.scores).all():
        raise UserError(f"the tokenizer in {where} has a score that is not a finite number")
    return vocabulary


def from_sentencepiece(where: str, data: bytes) -> Vocabulary:
    """The tokenizer in a SentencePiece model file.

    Raises:
        UserError: it is none, or is not BPE on text as it stands.
    """
    schema = package("sentencepiece.sentencepiece_model_pb2", "protobuf")
    message = package("google.protobuf.message", "protobuf")
    model = schema.ModelProto()
    try:
        model.ParseFromString(data)
    except message.DecodeError:
        raise UserError(f"{where} is not a SentencePiece model, or is cut short") from None
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    refused = {
        "model_type": trainer.model_type != trainer.BPE,
        "normalizer_spec.precompiled_charsmap": bool(normalizer.precompiled_charsmap),
        "normalizer_spec.remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "normalizer_spec.escape_whitespaces": not normalizer.escape_whitespaces,
        "trainer_spec.treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "denormalizer_spec": bool(model.denormalizer_spec.precompiled_charsmap),
    }
    for name, is_refused in refused.items():
        if is_refused:
            raise UserError(
                f"the tokenizer {where} has another {name} than Llama's, which cannot be "
                "represented: only BPE without normalization can"
            )
    vocabulary = Vocabulary(
        pieces=[piece.piece.encode() for piece in model.pieces],
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
    """The SentencePiece model file of a tokenizer."""
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
