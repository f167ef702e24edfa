"""SentencePiece BPE with the settings of Llama, for llama2.c and llama.cpp too.

UNK is 0, BOS is 1, EOS is 2, and there is no padding. Pieces 3…258 are the 256 bytes; they encode
characters that are not in the training text. Text is not normalized: every space counts, and one
space is added in front of the text. Each digit is a piece of its own. A line break is always the
byte piece <0x0A>, since training sees lines.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain

import numpy as np
import sentencepiece

from storyllamas.tokenizer.base import ImpossibleVocabularyError, Tokenizer, too_few_words
from storyllamas.vocabulary import PieceType, Vocabulary

RESERVED = "\u2585"
"""The character that SentencePiece cannot learn; it is always spelt in bytes."""


class SentencePieceTokenizer(Tokenizer):
    """A trained SentencePiece tokenizer.

    Attributes:
        processor: the object of the SentencePiece library.
    """

    def __init__(self, model: bytes) -> None:
        """Load the bytes of a SentencePiece model file.

        Raises:
            ValueError: they are not a model.
        """
        super().__init__(model)
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.load_from_serialized_proto(model)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        self.vocab_size = self.processor.vocab_size()
        self.bos_id = self.processor.bos_id()
        self.eos_id = self.processor.eos_id()

    def encode(self, text: str) -> list[int]:
        """Encode a text, without BOS and EOS; the name of a special piece is plain text."""
        ids: list[int] = self.processor.encode(text)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Decode ids; control pieces such as BOS and EOS have no text."""
        text: str = self.processor.decode(ids)
        return text

    def vocabulary(self) -> Vocabulary:
        """Return the pieces, scores and types that the weight file stores."""
        processor, ids = self.processor, range(self.vocab_size)
        types = np.full(self.vocab_size, PieceType.NORMAL, np.uint8)
        for piece_type, is_type in (
            (PieceType.UNKNOWN, processor.is_unknown),
            (PieceType.CONTROL, processor.is_control),
            (PieceType.UNUSED, processor.is_unused),
            (PieceType.BYTE, processor.is_byte),
        ):
            types[[index for index in ids if is_type(index)]] = piece_type
        return Vocabulary(
            pieces=[processor.id_to_piece(index).encode() for index in ids],
            scores=np.array([processor.get_score(index) for index in ids], np.float32),
            types=types,
            unk_id=processor.unk_id(),
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            pad_id=processor.pad_id(),
            dummy_prefix=processor.encode_as_pieces("a")[0].startswith("\u2581"),
            byte_fallback=bool((types == PieceType.BYTE).any()),
        )


def train(stories: Iterable[str], vocab_size: int, character_coverage: float = 1.0) -> bytes:
    """Train a tokenizer; the same stories give the same bytes on any machine.

    The text is kept in memory and takes about four times its size.

    Args:
        stories: the training text.
        vocab_size: number of pieces, special and byte pieces included.
        character_coverage: share of the text, above 0 … 1, whose characters become pieces; bytes
            spell the rarest characters.

    Returns:
        The SentencePiece model file.

    Raises:
        ImpossibleVocabularyError: the text has too few different words or too many different
            characters for the vocabulary size.
    """
    if character_coverage < 1:
        stories = list(stories)
    # SentencePiece skips a line that has the reserved character. A digit in its place is a word of
    # its own, so that what is learned of the text around it does not change.
    unlearned = dict.fromkeys(map(ord, {RESERVED, *_rare(stories, character_coverage)}), "0")
    texts = (story if story.isascii() else story.translate(unlearned) for story in stories)
    lines = (line for text in texts for line in text.split("\n") if line)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            max_sentence_length=2**30,  # SentencePiece silently skips longer lines
            # The pieces do not depend on it, but it is written to the model.
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explain(error, vocab_size) from None
    return model.getvalue()


def _rare(stories: Iterable[str], coverage: float) -> set[str]:
    """Return the characters beyond ASCII that are not needed to cover a share of the text."""
    if coverage >= 1:
        return set()
    counts = Counter(chain.from_iterable(stories))
    total, covered, rare = counts.total(), 0, set()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= coverage * total and not character.isascii():
            rare.add(character)
        covered += count
    return rare


def _explain(error: RuntimeError, vocab_size: int) -> Exception:
    """Turn SentencePiece's two errors about the vocabulary size into messages for the user."""
    if found := re.search(r"set it to a value <= (\d+)", str(error)):
        return too_few_words(vocab_size, int(found[1]))
    if found := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        return ImpossibleVocabularyError(
            f"tokenizer.vocab_size is {vocab_size} and the bytes and different characters of the "
            f"corpus alone are {found[1]}: lower tokenizer.character_coverage, or use at least "
            f"{found[1]}",
            int(found[1]),
        )
    return error
