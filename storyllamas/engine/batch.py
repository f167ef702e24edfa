"""Many stories at once: places of one session of the C engine, refilled as stories end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from storyllamas.engine.ffi import check, ffi, lib, string, utf8
from storyllamas.errors import UserError

TOGETHER = 16
"""Stories that are told together unless the caller says otherwise; see bench/LOG.md."""

_AHEAD = 16
"""Finished stories, for each place, that may wait for one before them."""


@dataclass(frozen=True)
class ToldStory:
    """A story told to its end.

    Attributes:
        index: its number among the stories, from 0.
        seed: the one that tells it alone.
        prompt: how it was to begin.
        text: all of it, the prompt included.
        ids: the tokens told, neither the prompt's nor EOS.
        stop: why it ended: "eos", "bos", "max_tokens" or "context".
    """

    index: int
    seed: int
    prompt: str
    text: str
    ids: list[int]
    stop: str

    @property
    def tokens(self) -> int:
        """Number of tokens told."""
        return len(self.ids)


@dataclass
class _Telling:
    index: int
    seed: int
    prompt: str
    ids: list[int] = field(default_factory=list)
    text: list[bytes] = field(default_factory=list)

    def told(self, stop: int) -> ToldStory:
        text = self.prompt + b"".join(self.text).decode()
        name = string(lib.sl_stop_name(stop))
        return ToldStory(self.index, self.seed, self.prompt, text, self.ids, name)


class _Places:
    """A session of the C engine whose stories have the same options but for their seeds."""

    def __init__(self, session: Any, count: int, options: Any) -> None:
        self._session = session
        self._options = options
        self._first_seed: int = options.seed
        self._pieces = ffi.new("sl_piece[]", count)
        self.telling: dict[int, _Telling] = {}  # by place
        self.free = list(reversed(range(count)))

    def join(self, index: int, prompt: str) -> None:
        """Begin a story at a free place."""
        self._options.seed = (self._first_seed + index) % 2**64
        place = self.free[-1]
        try:
            text = utf8(prompt)
            options = ffi.addressof(self._options)
            check(lib.sl_start_slot(self._session, place, text, len(text), options))
        except UserError as error:
            raise UserError(f"story {index}: {error}") from None
        self.telling[self.free.pop()] = _Telling(index, self._options.seed, prompt)

    def step(self) -> Iterator[ToldStory]:
        """Tell the next token of every story, and give the stories that have ended."""
        check(lib.sl_step(self._session, self._pieces))
        for place, telling in list(self.telling.items()):
            piece = self._pieces[place]
            if piece.length:
                telling.text.append(ffi.buffer(piece.text, piece.length)[:])
            if piece.stop:
                del self.telling[place]
                self.free.append(place)
                yield telling.told(piece.stop)
            else:
                telling.ids.append(piece.id)


def tell(session: Any, together: int, prompts: Iterable[str], options: Any) -> Iterator[ToldStory]:
    """Tell a story for each prompt, in the order of the prompts.

    Args:
        session: an `sl_session` of `together` places, which nobody else uses.
        together: stories that are told at a time.
        prompts: any number of them; they are taken as places become free.
        options: `sl_options`, with the seed of the first story.

    Raises:
        UserError: a prompt is longer than the context or not Unicode; says which story's.
    """
    places = _Places(session, together, options)
    waiting = enumerate(prompts)
    told: dict[int, ToldStory] = {}
    following = 0
    while True:
        while places.free and len(told) < _AHEAD * together and (begun := next(waiting, None)):
            places.join(*begun)
        if not places.telling:
            return
        told |= {story.index: story for story in places.step()}
        while following in told:
            yield told.pop(following)
            following += 1
