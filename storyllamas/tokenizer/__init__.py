"""Tokenizers: `train` one of a kind, `load` one of any kind.

Each kind has a module. Its file has the same name for every kind, since DVC knows a stage's output
by its name; `from_bytes` detects the kind from the content.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from storyllamas.errors import UserError
from storyllamas.regular_file import open_regular
from storyllamas.tokenizer import byte_level, sentencepiece
from storyllamas.tokenizer.base import Tokenizer
from storyllamas.vocabulary import TrainableKind


def train(
    stories: Iterable[str],
    vocab_size: int,
    character_coverage: float = 1.0,
    kind: TrainableKind = "sentencepiece",
) -> bytes:
    """Train a tokenizer; the same stories give the same bytes.

    Args:
        stories: the training text.
        vocab_size: number of pieces, special pieces and bytes included.
        character_coverage: see `sentencepiece.train`; the other kind does not use it.
        kind: the kind of the tokenizer.

    Returns:
        The tokenizer's file.

    Raises:
        ImpossibleVocabularyError: the text has too few different words or too many different
            characters for the vocabulary size.
    """
    if kind == "byte_level":
        return byte_level.train(stories, vocab_size)
    return sentencepiece.train(stories, vocab_size, character_coverage)


def from_bytes(model: bytes) -> Tokenizer:
    """Load the bytes of a tokenizer's file, of any kind.

    Raises:
        ValueError: they are no tokenizer.
    """
    # A SentencePiece model is a protocol buffer, in which no first byte is a brace.
    if model.startswith(b"{"):
        return byte_level.ByteLevelTokenizer(model)
    return sentencepiece.SentencePieceTokenizer(model)


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer's file, of any kind.

    Raises:
        UserError: the file is missing or is no tokenizer.
    """
    try:
        with open_regular(path) as file:
            return from_bytes(file.read())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run `dvc repro tokenizer`") from None
    except ValueError:
        raise UserError(
            f"{path} is not a SentencePiece model or a byte-level tokenizer.json: "
            "run `dvc repro --force tokenizer`"
        ) from None


def bytes_per_token(tokenizer: Tokenizer, stories: Iterable[str]) -> float:
    """Return the UTF-8 bytes of text per token, without BOS and EOS."""
    text_bytes = tokens = 0
    for story in stories:
        text_bytes += len(story.encode())
        tokens += len(tokenizer.encode(story))
    return text_bytes / tokens
