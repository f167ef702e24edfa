"""Byte-level BPE with the settings of Llama 3; the file is a tokenizer.json of Hugging Face.

Pieces 0…255 are the bytes, so every text can be encoded and no piece is unknown. The learned pieces
follow, then BOS and EOS. These have the names that Llama 3 gives them, which other programs know,
and neither is <|endoftext|>, the separator of a corpus. In a text, the names are plain text.

Text is not normalized, and no space is added. Llama 3's regular expression splits a text into
words, and pieces do not extend over words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from storyllamas.errors import UserError
from storyllamas.tokenizer import tokenizer_json
from storyllamas.tokenizer.base import Tokenizer, too_few_words
from storyllamas.vocabulary import TokenizerKind, Vocabulary

BOS_PIECE, EOS_PIECE = "<|begin_of_text|>", "<|end_of_text|>"
SPECIAL = (BOS_PIECE, EOS_PIECE)


class ByteLevelTokenizer(Tokenizer):
    """A trained byte-level tokenizer.

    Attributes:
        processor: the object of the tokenizers library.
    """

    def __init__(self, model: bytes) -> None:
        """Load the bytes of a tokenizer.json that `train` wrote.

        Raises:
            ValueError: they are not one.
        """
        super().__init__(model)
        self._vocabulary = _parse(model)
        try:
            self.processor = tokenizers.Tokenizer.from_str(model.decode())
        except Exception as error:  # the library raises no narrower class
            raise ValueError(str(error)) from None
        self.processor.encode_special_tokens = True
        self.vocab_size = len(self._vocabulary.pieces)
        self.bos_id, self.eos_id = self._vocabulary.bos_id, self._vocabulary.eos_id

    def encode(self, text: str) -> list[int]:
        """Encode a text, without BOS and EOS; the name of a special piece is plain text."""
        ids: list[int] = self.processor.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Decode ids; BOS and EOS have no text."""
        text: str = self.processor.decode(ids)
        return text

    def vocabulary(self) -> Vocabulary:
        """Return the pieces, merges and added tokens that the weight file stores."""
        return self._vocabulary


def _parse(model: bytes) -> Vocabulary:
    """Read a tokenizer.json that `train` wrote.

    Raises:
        ValueError: it is damaged, of another kind, or has no BOS or no EOS.
    """
    data = json.loads(model)
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    try:
        vocabulary = tokenizer_json.from_json("the file", data)
    except UserError as error:
        raise ValueError(str(error)) from None
    if vocabulary.kind != TokenizerKind.BYTE_LEVEL:
        raise ValueError("it is not byte-level")
    added = {vocabulary.pieces[index].decode(): int(index) for index in vocabulary.added[:, 0]}
    for name in SPECIAL:
        if name not in added:
            raise ValueError(f"it has no special token {name}")
    return replace(vocabulary, bos_id=added[BOS_PIECE], eos_id=added[EOS_PIECE])


def train(stories: Iterable[str], vocab_size: int) -> bytes:
    """Train a tokenizer; the same stories give the same bytes, with any number of threads.

    The different words of the text are kept in memory, not the text.

    Args:
        stories: the training text.
        vocab_size: number of pieces, the 256 bytes and the 2 special pieces included.

    Returns:
        The tokenizer.json.

    Raises:
        ImpossibleVocabularyError: the text has too few different words for the vocabulary size.
    """
    # Llama 3 takes a word that is a piece as it is, and llama.cpp expects that of its regex.
    trained = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(tokenizer_json.LLAMA3), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(stories, trainer)
    largest = trained.get_vocab_size() + len(SPECIAL)
    if largest < vocab_size:
        raise too_few_words(vocab_size, largest)
    # After the training, so that they get the last ids, as in Llama 3.
    trained.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIAL]
    )
    trained.post_processor = processors.TemplateProcessing(
        single=f"{BOS_PIECE} $A", special_tokens=[(BOS_PIECE, trained.token_to_id(BOS_PIECE))]
    )
    return str(trained.to_str()).encode()
