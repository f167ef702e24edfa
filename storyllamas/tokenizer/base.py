"""What the tokenizers of all kinds share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

from storyllamas.errors import UserError
from storyllamas.vocabulary import Vocabulary


class ImpossibleVocabularyError(UserError):
    """A text has too few different words or too many characters for a vocabulary size.

    Attributes:
        nearest: the nearest vocabulary size that the text allows.
    """

    def __init__(self, message: str, nearest: int) -> None:
        super().__init__(message)
        self.nearest = nearest


def too_few_words(vocab_size: int, largest: int) -> ImpossibleVocabularyError:
    """Return the error that a text has too few different words.

    Args:
        vocab_size: the size of the vocabulary that was asked for.
        largest: the largest size that the text allows.
    """
    return ImpossibleVocabularyError(
        f"tokenizer.vocab_size is {vocab_size} and the corpus can fill only {largest}: "
        f"use at most {largest}, or more training stories",
        largest,
    )


class Tokenizer(ABC):
    """A trained tokenizer.

    Attributes:
        model: the tokenizer's file.
        digest: its SHA-256, 32 bytes.
        vocab_size: number of pieces.
        bos_id: the piece that begins a story.
        eos_id: the piece that ends a story.
    """

    vocab_size: int
    bos_id: int
    eos_id: int

    def __init__(self, model: bytes) -> None:
        """Take the bytes of the tokenizer's file."""
        self.model = model
        self.digest = hashlib.sha256(model).digest()

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Encode a text, without BOS and EOS; the name of a special piece is plain text."""

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Decode ids; control pieces such as BOS and EOS have no text."""

    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """Return the tokenizer as the weight file stores it."""
