"""One of the texts of a request: what the worker adds to it and what the client has not got yet."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from storyllamas.engine.logprobs import Logprobs
from storyllamas.server.stop_texts import StopTexts
from storyllamas.server.worker import Piece


@dataclass(frozen=True)
class PlacedLogprobs:
    """The log probabilities of a token, and where its text begins.

    Attributes:
        offset: in characters from the beginning of the completion.
    """

    logprobs: Logprobs
    offset: int


@dataclass
class Chunk:
    """What a choice has gained since its last chunk.

    Attributes:
        index: of the choice.
        text: the new text.
        finish_reason: "stop", "length", or "" while the text goes on.
        error: a message if the sequence failed, else "".
        logprobs: of the new tokens, if they were asked for.
    """

    index: int
    text: str = ""
    finish_reason: str = ""
    error: str = ""
    logprobs: list[PlacedLogprobs] = field(default_factory=list)

    @property
    def is_last(self) -> bool:
        """Return whether the choice ends here."""
        return bool(self.finish_reason or self.error)


class Choice:
    """A text that the worker's thread adds to and the client's thread takes from.

    Attributes:
        tokens: the number of generated tokens so far.
    """

    def __init__(self, index: int, stops: Sequence[str], is_streamed: bool) -> None:
        """Begin an empty text.

        Args:
            index: of the choice.
            stops: texts that end it.
            is_streamed: whether the client waits for each token, not for the whole text.
        """
        self.tokens = 0
        self._index = index
        self._is_streamed = is_streamed
        self._stops = StopTexts(stops)
        self._placed: list[PlacedLogprobs] = []  # of tokens whose text is held back
        self._length = 0  # characters of all tokens
        self._passed = 0  # characters that are surely in the text
        self._new = Chunk(index)
        self._has_ended = False
        self._lock = threading.Lock()

    def add(self, piece: Piece) -> bool:
        """Add a token; return whether the client is to take what there is."""
        with self._lock:
            if self._has_ended:
                return False  # at a stop text, and this token was on its way
            self._add(piece)
            self._has_ended = self._new.is_last
            return self._has_ended or (self._is_streamed and bool(self._new.text))

    def take(self) -> Chunk | None:
        """Return what is new; None: nothing is, or the client waits for the whole text."""
        with self._lock:
            new = self._new
            if not new.is_last and not (new.text and self._is_streamed):
                return None
            self._new = Chunk(self._index)
            return new

    def _add(self, piece: Piece) -> None:
        new = self._new
        if piece.error:
            new.error = piece.error
            return
        is_token = piece.id >= 0 and piece.stop not in ("eos", "bos")
        self.tokens += is_token
        if piece.logprobs and is_token:
            self._placed.append(PlacedLogprobs(piece.logprobs, self._length))
        self._length += len(piece.text)
        text = self._stops.add(piece.text)
        if self._stops.is_found:
            new.finish_reason = "stop"
        elif piece.stop:
            new.finish_reason = "length" if piece.stop in ("max_tokens", "context") else "stop"
            text += self._stops.rest()
        new.text += text
        self._passed += len(text)
        self._pass_logprobs(all_of_them=bool(piece.stop) and not self._stops.is_found)

    def _pass_logprobs(self, all_of_them: bool) -> None:
        """Show the tokens that begin in the text that is surely there."""
        count = len(self._placed)
        if not all_of_them:
            count = sum(placed.offset < self._passed for placed in self._placed)
        self._new.logprobs += self._placed[:count]
        del self._placed[:count]
