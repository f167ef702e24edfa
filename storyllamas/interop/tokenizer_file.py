"""The tokenizer of a model as the file that the workflow has for its own tokenizers."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np

from storyllamas import tokenizer
from storyllamas.errors import UserError
from storyllamas.interop import huggingface, sentencepiece
from storyllamas.vocabulary import TokenizerKind, Vocabulary


def tokenizer_file(vocabulary: Vocabulary) -> bytes:
    """Return a SentencePiece model or a tokenizer.json that encodes as the vocabulary does.

    The chat template and what a chat needs are left out.

    Raises:
        UserError: the workflow cannot train with such a tokenizer.
    """
    if vocabulary.kind == TokenizerKind.SENTENCEPIECE:
        data = sentencepiece.to_sentencepiece(vocabulary)
    elif vocabulary.kind == TokenizerKind.BYTE_LEVEL:
        data = json.dumps(huggingface.ranked_json(vocabulary)).encode()
    else:
        raise _unsuited("it is BPE of characters with ranked merges")
    try:
        made = tokenizer.from_bytes(data).vocabulary()
    except ValueError as error:
        raise _unsuited(str(error)) from None
    if not _is_same(made, vocabulary):
        raise _unsuited("it has settings that tokenizer.model and tokenizer.json cannot store")
    return data


def _unsuited(why: str) -> UserError:
    return UserError(
        f"its tokenizer is not one that the workflow can train with ({why}): leave tokenizer.path "
        "empty to train a new one"
    )


def _is_same(made: Vocabulary, wanted: Vocabulary) -> bool:
    """Return whether two vocabularies encode and decode the same, apart from chats."""
    plain = replace(
        wanted,
        chat_template=made.chat_template,
        extra_eos_ids=made.extra_eos_ids,
        adds_bos=made.adds_bos,
    )
    return all(
        np.array_equal(getattr(made, field.name), getattr(plain, field.name))
        for field in fields(Vocabulary)
    )
