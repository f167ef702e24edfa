"""`make fuzz-tokenizer MINUTES=60`: compare the C tokenizer with SentencePiece on random inputs.

Each round draws a vocabulary and hundreds of texts. The vocabulary is random, or trained on random
text with random options. The round compares ids and decoded texts, with and without the word cache,
one text at a time and all texts in one call. A round depends on its seed only. The run stops at the
first difference and prints the seed.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import rounds
import sentencepiece
from texts import SPACE, encode_without_cache, text_maker, word_maker

from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.interop.sentencepiece import from_sentencepiece, to_sentencepiece
from storyllamas.vocabulary import PieceType, Vocabulary

TEXTS = 400


def train(draw: random.Random, word: Callable[[], str]) -> bytes | None:
    """Train a SentencePiece model; return None if the trainer rejects the options."""
    lines = [" ".join(word() for _ in range(draw.randint(1, 20))) for _ in range(300)]
    lines = [line.replace("\0", "") for line in lines]
    byte_fallback = draw.random() < 0.6
    options: dict[str, Any] = {
        "byte_fallback": byte_fallback,
        "character_coverage": draw.choice([1.0, 0.99, 0.98]),
        "add_dummy_prefix": draw.random() < 0.7,
        "split_digits": draw.random() < 0.5,
        "split_by_whitespace": draw.random() < 0.7,
        "split_by_unicode_script": draw.random() < 0.7,
        "split_by_number": draw.random() < 0.7,
        "allow_whitespace_only_pieces": draw.random() < 0.5,
    }
    if draw.random() < 0.4:
        names = {word() for _ in range(draw.randint(1, 8))} | {word() + SPACE + word()}
        options["user_defined_symbols"] = sorted(name.replace(" ", SPACE) for name in names)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=draw.randint(700, 1500) + 256 * byte_fallback,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            num_threads=1,
            minloglevel=3,
            **options,
        )
    except RuntimeError:
        return None
    return model.getvalue()


def random_vocabulary(draw: random.Random, word: Callable[[], str]) -> Vocabulary:
    """Draw a random vocabulary that no trainer would produce: any pieces, many equal scores."""
    byte_fallback = draw.random() < 0.6
    special = {"<unk>": PieceType.UNKNOWN, "<s>": PieceType.CONTROL, "</s>": PieceType.CONTROL}
    types = {**special, **dict.fromkeys((f"<0x{i:02X}>" for i in range(256)), PieceType.BYTE)}
    types = types if byte_fallback else dict(special)
    kinds = [PieceType.NORMAL] * 20 + [draw.choice([PieceType.NORMAL, PieceType.USER_DEFINED])]
    for _ in range(draw.randint(20, 300)):
        text = (draw.choice(["", " "]) + word() + draw.choice(["", "", "", " " + word()])) or "a"
        for size in range(1, draw.randint(1, min(6, len(text))) + 1):
            types.setdefault(text[:size].replace(" ", SPACE).replace("\0", "?"), draw.choice(kinds))
        for character in text.replace(" ", SPACE).replace("\0", "?"):
            if draw.random() < 0.8:
                types.setdefault(character, draw.choice(kinds))
    levels = draw.choice([1, 3, 1000])
    return Vocabulary(
        pieces=[piece.encode() for piece in types],
        scores=np.array([-draw.randrange(levels) for _ in types], np.float32),
        types=np.array([*types.values()], np.uint8),
        dummy_prefix=draw.random() < 0.7,
        byte_fallback=byte_fallback,
    )


def draw_vocabulary(draw: random.Random, word: Callable[[], str]) -> Vocabulary | None:
    """Draw a trained or a random vocabulary; return None if the trainer rejects the options."""
    if draw.random() < 0.5:
        found = random_vocabulary(draw, word)
    elif model := train(draw, word):
        found = from_sentencepiece("the model", model)
    else:
        return None
    if draw.random() < 0.2:
        types = [
            PieceType.UNUSED if kind == PieceType.NORMAL and draw.random() < 0.3 else kind
            for kind in found.types
        ]
        found = replace(found, types=np.array(types, np.uint8))
    return found


def first_difference(
    ours: FastTokenizer,
    theirs: sentencepiece.SentencePieceProcessor,
    texts: list[str],
    drawn: list[list[int]],
) -> str:
    """Return the first difference in encoding `texts` or decoding `drawn` ids, or ""."""
    expected = theirs.encode(texts, num_threads=1)
    for text, ids in zip(texts, expected, strict=True):
        if ours.encode(text) != ids:
            return f"with cache, {text!r}: {ours.encode(text)}, not {ids}"
        if encode_without_cache(ours, text) != ids:
            return f"without cache, {text!r}: {encode_without_cache(ours, text)}, not {ids}"
    together = ours.encode_stories([text.encode() for text in texts]).tolist()
    if together != [id for ids in expected for id in ids]:
        return "encoding all texts in one call gives different ids from one text at a time"
    for ids in [*expected, *drawn]:
        if ours.decode(ids) != theirs.decode(ids):
            return f"decoding {ids}: {ours.decode(ids)!r}, not {theirs.decode(ids)!r}"
    return ""


def run_round(seed: int) -> tuple[int, str]:
    """Compare one vocabulary; return the number of texts and the first difference, or ""."""
    draw = random.Random(seed)
    word = word_maker(draw)
    known = draw_vocabulary(draw, word)
    if known is None:
        return 0, ""
    theirs = sentencepiece.SentencePieceProcessor(model_proto=to_sentencepiece(known))
    text = text_maker(draw, word, [piece.decode() for piece in known.pieces])
    texts = [text() for _ in range(TEXTS)]
    size = len(known.pieces)
    drawn = [draw.choices(range(size), k=draw.randint(0, 20)) for _ in range(TEXTS)]
    return TEXTS, first_difference(FastTokenizer.of(known), theirs, texts, drawn)


if __name__ == "__main__":
    rounds.main("tokenizer.py", __doc__ or "", lambda seed, _: run_round(seed))
