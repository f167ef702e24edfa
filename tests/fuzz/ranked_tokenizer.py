"""`make fuzz-tokenizer MINUTES=60`: compare ranked tokenizers with the package `tokenizers`.

Each round draws one of the kinds of tokenizer.json, trains it on random text, adds random tokens
and draws hundreds of texts. Some rounds shuffle the merges. The round compares ids and decoded
texts, with and without the word cache, with special tokens parsed and not. A round depends on its
seed only.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import rounds
from texts import SPACE, encode_without_cache, text_maker, word_maker
from tokenizers import AddedToken, Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ranked import BYTES, KINDS, Pair, pair_of, train

from storyllamas.errors import UserError

TEXTS = 200
ALL_CHARACTERS = 1 << 20


def draw_tokens(
    draw: random.Random, word: Callable[[], str], special: bool, texts: set[str]
) -> list[AddedToken]:
    """Draw added tokens with any flags; some begin or end with spaces or contain them.

    `texts` gets their texts with U+2581 for spaces. No two of them are equal, since `tokenizers`
    chooses at random among tokens that are equal when they are normalized.
    """
    tokens = []
    for _ in range(draw.choice([0, 1, 3, 8])):
        text = word() + draw.choice(["", "", " " + word()])
        text = draw.choice([text, text, f"<{text}>", f" {text}", f"{text} ", f"<|{text}"])
        flags = {name: draw.random() < 0.3 for name in ("lstrip", "rstrip", "single_word")}
        normalized = draw.random() < 0.5
        key = text.replace(" ", SPACE)
        if text.strip() and text not in BYTES and key not in texts:
            texts.add(key)
            tokens.append(AddedToken(text, special=special, normalized=normalized, **flags))
    return tokens


def draw_tokenizer(draw: random.Random, word: Callable[[], str]) -> Pair | None:
    """Train a tokenizer; return None if its added tokens cannot be represented."""
    kind = draw.choice(list(KINDS))
    sentences = [" ".join(word() for _ in range(draw.randint(1, 20))) for _ in range(200)]
    known: set[str] = set()
    special, added = (draw_tokens(draw, word, flag, known) for flag in (True, False))
    theirs = train(kind, special, added, sentences, draw.randint(300, 1200), ALL_CHARACTERS)
    if draw.random() < 0.3:
        data = json.loads(theirs.to_str())
        draw.shuffle(data["model"]["merges"])
        theirs = Tokenizer.from_str(json.dumps(data))
    try:
        return pair_of(kind, theirs)
    except UserError as error:
        if "also a piece of other bytes" in str(error):
            return None
        raise


def first_difference(both: Pair, texts: list[str], drawn: list[list[int]]) -> str:
    """Return the first difference in encoding `texts` or decoding `drawn` ids, or ""."""
    hidden, different = both.hidden(), both.decoded_differently()
    for text in texts:
        for special in (False, True):
            ids = both.ids(text, special)
            found = both.ours.encode(text, special)
            if found != ids:
                return f"with cache, special {special}, {text!r}: {found}, not {ids}"
            found = encode_without_cache(both.ours, text, special)
            if found != ids:
                return f"without cache, special {special}, {text!r}: {found}, not {ids}"
        # A whole text has whole characters, so that byte pieces decode, too.
        ids = [index for index in both.ids(text) if index not in hidden]
        if not different & {*ids}:
            drawn.append(ids)
    for ids in drawn:
        text = both.theirs.decode(ids)
        if both.ours.decode(ids) != text:
            return f"decoding {ids}: {both.ours.decode(ids)!r}, not {text!r}"
    return ""


def run_round(seed: int) -> tuple[int, str]:
    """Compare one tokenizer; return the number of texts and the first difference, or ""."""
    draw = random.Random(seed)
    word = word_maker(draw)
    both = draw_tokenizer(draw, word)
    if both is None:
        return 0, ""
    pieces = [piece.decode(errors="ignore") or " " for piece in both.vocabulary.pieces]
    added = [pieces[index] for index in both.vocabulary.added[:, 0]]
    text = text_maker(draw, word, [*pieces, *added * (len(pieces) // max(1, len(added)))])
    texts = [text() for _ in range(TEXTS)]
    ids = both.comparable()
    drawn = [draw.choices(ids, k=draw.randint(0, 20)) for _ in range(TEXTS)]
    return TEXTS, first_difference(both, texts, drawn)


if __name__ == "__main__":
    rounds.main("ranked_tokenizer.py", __doc__ or "", lambda seed, _: run_round(seed))
