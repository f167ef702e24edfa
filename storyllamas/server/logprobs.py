"""Log probabilities as OpenAI's interface shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np

from storyllamas.engine.engine import Engine
from storyllamas.engine.logprobs import Logprobs
from storyllamas.errors import UserError
from storyllamas.server.choice import PlacedLogprobs

MAX_PROMPT_LOGITS = 1 << 25
"""Logits of a prompt whose log probabilities are shown: 128 MB."""

REPLACEMENT = "\ufffd"


class TokenTexts:
    """The text that each token adds to another one."""

    def __init__(self, engine: Engine) -> None:
        """Take the model."""
        self._engine = engine
        self._before = engine.encode("a")[:1]  # without it, a tokenizer drops the first space
        self._skipped = len(engine.decode(self._before))
        self._texts: dict[int, str] = {}

    def __getitem__(self, id: int) -> str:
        r"""Return the text of a token; "bytes:\xe2" for a part of a character, as OpenAI has it."""
        if id not in self._texts:
            self._texts[id] = self._text(id)
        return self._texts[id]

    def characters(self, ids: Sequence[int]) -> list[int]:
        """Return how many characters of a text begin in each of its tokens.

        A byte that is no part of a character becomes a character, U+FFFD.
        """
        counts: list[int] = []
        for is_spelt, run in groupby(ids, lambda id: self[id].startswith("bytes:")):
            if is_spelt:
                texts = (self[id].removeprefix("bytes:").replace("\\x", "") for id in run)
                counts += _beginnings([bytes.fromhex(text) for text in texts])
            else:
                counts += [
                    len(self._engine.decode([*self._before, id])) - self._skipped for id in run
                ]
        return counts

    def _text(self, id: int) -> str:
        text = self._engine.decode([*self._before, id])[self._skipped :]
        if text and REPLACEMENT not in text:
            return text
        spelt = self._engine.tokenizer.piece(id)
        if text and spelt.startswith(b"<0x"):
            spelt = bytes([int(spelt[3:5], 16)])
        if not text:
            return spelt.decode(errors="replace")
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)


def _beginnings(parts: Sequence[bytes]) -> list[int]:
    """Return how many characters begin in each part of a text in UTF-8."""
    data = b"".join(parts)
    begins, at = [0] * len(data), 0
    while at < len(data):
        begins[at] = 1
        at += next((n for n in range(1, 5) if _is_character(data[at : at + n])), 1)
    ends = list(accumulate(map(len, parts), initial=0))
    return [sum(begins[start:end]) for start, end in pairwise(ends)]


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


@dataclass
class Shown:
    """The fields of `logprobs` in an answer."""

    texts: TokenTexts
    count: int
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, logprobs: Logprobs, offset: int) -> None:
        """Add a token.

        Args:
            logprobs: of the token.
            offset: where its text begins in that of the answer, in characters.
        """
        self.tokens.append(self.texts[logprobs.id])
        self.token_logprobs.append(logprobs.logprob)
        top = logprobs.top[: self.count]
        self.top_logprobs.append({self.texts[id]: value for id, value in top} if top else None)
        self.text_offset.append(offset)

    def add_first(self, id: int) -> None:
        """Add the first token of a prompt without BOS; nothing predicts it."""
        self.tokens.append(self.texts[id])
        self.token_logprobs.append(None)
        self.top_logprobs.append(None)
        self.text_offset.append(0)

    def add_generated(self, placed: Iterable[PlacedLogprobs], start: int) -> None:
        """Add tokens of a completion that begins at character `start` of the answer's text."""
        for each in placed:
            self.add(each.logprobs, start + each.offset)

    def json(self) -> dict[str, Any]:
        """Return the value for the answer."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs if self.count else None,
            "text_offset": self.text_offset,
        }


def check_prompt(engine: Engine, ids: Sequence[int]) -> None:
    """Check that the logits of a prompt are few enough to be kept.

    Raises:
        UserError: they are not.
    """
    most = MAX_PROMPT_LOGITS // engine.info["vocab_size"]
    if len(ids) > most:
        raise UserError(
            f"prompt has {len(ids)} tokens, and echo with logprobs allows {most}: shorten it"
        )


def add_prompt(shown: Shown, engine: Engine, ids: Sequence[int]) -> None:
    """Add the tokens of an echoed prompt, except for BOS.

    Args:
        shown: gets the tokens.
        engine: the model.
        ids: of the prompt, BOS included.
    """
    has_bos = bool(ids) and ids[0] == engine.bos_id
    if not has_bos and ids:
        shown.add_first(ids[0])
    if len(ids) < 2:
        return
    logits = engine.logits(ids[:-1]).astype(np.float64)
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    # The first token loses the space that the tokenizer puts in front of a text.
    offset = 0 if has_bos else len(engine.decode(ids[:1]))
    characters = shown.texts.characters(ids[1:])
    if has_bos:
        characters[0] = len(engine.decode(ids[1:2]))
    for row, id, count in zip(logits, ids[1:], characters, strict=True):
        best = np.argsort(-row, kind="stable")[: shown.count]
        top = tuple((int(each), float(row[each])) for each in best)
        shown.add(Logprobs(int(id), float(row[id]), top), offset)
        offset += count
