"""Words and sentences of a story, as all measures count them.

A word is a run of letters and digits in lower case, as in ROUGE, so that "don't" is two words. A
character of a script without spaces is a word by itself.
"""

from __future__ import annotations

import re

from storyllamas.corpus import words as corpus_words

_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"[.!?…]+[\"”’')]*(?=\s|$)|\n+")
_PUNCTUATION = re.compile(rb"\xe2\x80[\x80-\xbf]")  # U+2000 … U+203F, where curly quotes are
_LETTERS = bytes(
    ord(chr(code).lower()) if chr(code).isascii() and chr(code).isalnum() else ord(" ")
    for code in range(256)
)


def words(text: str) -> list[str]:
    """Return the words of a text."""
    text = text.lower()
    if corpus_words.has_unspaced(text):
        return [word for each in corpus_words.split(text) for word in _WORD.findall(each)]
    return _WORD.findall(text)


def spaced(story: bytes) -> bytes:
    """Return a story in UTF-8 with whitespace in place of all that is not part of a word."""
    if not story.isascii():
        story = _PUNCTUATION.sub(b" ", story)
    if story.isascii():
        return story.translate(_LETTERS)  # as `words`, a hundred times as fast
    return " ".join(words(story.decode())).encode()


def sentences(text: str) -> list[tuple[str, ...]]:
    """Return the words of each sentence; a line break ends a sentence too."""
    found = (tuple(words(each)) for each in _SENTENCE_END.split(text))
    return [sentence for sentence in found if sentence]


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of words, in order."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
