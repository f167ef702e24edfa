"""One request for completions: its sequences in the batch, and what each has generated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from storyllamas.engine.options import make_options
from storyllamas.server.choice import Choice, Chunk
from storyllamas.server.request import CompletionRequest
from storyllamas.server.worker import Sequence, Worker


class Completion:
    """The sequences of a request; `cancel` frees their slots.

    Attributes:
        loop: the event loop of the request.
        arrived: is set there when a choice has something to take.
    """

    def __init__(
        self, worker: Worker, request: CompletionRequest, prompts: list[list[int]]
    ) -> None:
        """Prepare the sequences: `request.count` for each prompt.

        Args:
            worker: generates them.
            request: what the client asks for.
            prompts: the ids of its prompts, BOS included.
        """
        self._worker = worker
        self.loop = asyncio.get_running_loop()
        self.arrived = asyncio.Event()
        self._choices: list[Choice] = []
        self._sequences: list[Sequence] = []
        for prompt in prompts if request.max_tokens != 0 else []:
            for number in range(request.count):
                choice = Choice(len(self._choices), request.stops, bool(request.stream))
                self._choices.append(choice)
                options = make_options(request.options(number))
                self._sequences.append(Sequence(prompt, options, choice.add, self))

    @property
    def tokens(self) -> int:
        """The number of generated tokens so far."""
        return sum(choice.tokens for choice in self._choices)

    async def chunks(self, pause: Callable[[], float] = lambda: 0) -> AsyncGenerator[Chunk, None]:
        """Submit the sequences, and yield what they gain, in any order of their indices.

        All sequences are cancelled when the iterator is closed.

        Args:
            pause: returns the seconds between two rounds of chunks; what comes in between is in
                the next chunk.

        Raises:
            QueueFullError: there is no room for all sequences.
            UserError: the worker is closed.
        """
        running = set(range(len(self._choices)))
        try:
            self._worker.submit(self._sequences)
            while running:
                await self.arrived.wait()
                self.arrived.clear()
                for index in sorted(running):
                    if chunk := self._choices[index].take():
                        if chunk.is_last:
                            running.remove(index)
                            self._sequences[index].cancel()  # it may have ended at a stop text
                        yield chunk
                if running and (seconds := pause()):
                    await asyncio.sleep(seconds)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End all sequences before their next token."""
        for sequence in self._sequences:
            sequence.cancel()


def notify(completions: list[Completion]) -> None:
    """Wake requests of one event loop; call it in any other thread."""
    with suppress(RuntimeError):  # the server has stopped, and the loop is closed
        completions[0].loop.call_soon_threadsafe(_wake, completions)


def _wake(completions: list[Completion]) -> None:
    for completion in completions:
        completion.arrived.set()
