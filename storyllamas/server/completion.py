"""One request for completions: its sequences in the batch, and what each has generated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field

from storyllamas.engine.engine import make_options
from storyllamas.server.request import CompletionRequest
from storyllamas.server.stop_texts import StopTexts
from storyllamas.server.worker import Piece, Sequence, Worker


@dataclass
class Choice:
    """One of the texts of a request.

    Attributes:
        text: the new text since the last `Choice` of the same index.
        finish_reason: "stop", "length", or "" while the text goes on.
        error: a message if the sequence failed, else "".
    """

    index: int
    text: str = ""
    finish_reason: str = ""
    error: str = ""


@dataclass
class Completion:
    """The sequences of a request; `cancel` frees their slots.

    Attributes:
        tokens: the number of generated tokens so far.
    """

    worker: Worker
    request: CompletionRequest
    tokens: int = 0
    _sequences: list[Sequence] = field(default_factory=list)

    async def choices(self) -> AsyncGenerator[Choice, None]:
        """Submit the sequences, and yield their text as it comes, in any order of their indices.

        All sequences are cancelled when the iterator is closed.

        Raises:
            QueueFullError: there is no room for all sequences.
            UserError: the worker is closed.
        """
        arrivals: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        filters = [StopTexts(self.request.stops) for _ in range(self.request.n)]
        running = set(range(self.request.n))
        try:
            self._submit(arrivals)
            while running:
                index, piece = await arrivals.get()
                if index not in running:
                    continue  # it ended at a stop text, and this token was on its way
                choice = self._choice(index, piece, filters[index])
                if choice.finish_reason or choice.error:
                    running.remove(index)
                    self._sequences[index].cancel()
                if choice.text or choice.finish_reason or choice.error:
                    yield choice
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End all sequences before their next token."""
        for sequence in self._sequences:
            sequence.cancel()

    def _submit(self, arrivals: asyncio.Queue[tuple[int, Piece]]) -> None:
        loop = asyncio.get_running_loop()
        for index in range(self.request.n):

            def deliver(piece: Piece, index: int = index) -> None:
                with suppress(RuntimeError):  # the server has stopped, and the loop is closed
                    loop.call_soon_threadsafe(arrivals.put_nowait, (index, piece))

            options = make_options(self.request.options(index))
            self._sequences.append(Sequence(self.request.prompt, options, deliver))
        self.worker.submit_all(self._sequences)

    def _choice(self, index: int, piece: Piece, stops: StopTexts) -> Choice:
        if piece.error:
            return Choice(index, error=piece.error)
        self.tokens += piece.id >= 0 and piece.stop not in ("eos", "bos")
        text = stops.add(piece.text)
        if stops.is_found:
            return Choice(index, text, "stop")
        if piece.stop:
            reason = "length" if piece.stop in ("max_tokens", "context") else "stop"
            return Choice(index, text + stops.rest(), reason)
        return Choice(index, text)
