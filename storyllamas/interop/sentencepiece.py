"""SentencePiece's model file: a protocol buffer whose schema is in the sentencepiece package."""

from __future__ import annotations

import numpy as np

from storyllamas.errors import UserError
from storyllamas.interop.packages import package
from storyllamas.interop.vocabulary_check import check
from storyllamas.vocabulary import Vocabulary


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
