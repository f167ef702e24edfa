"""Batched generation: slots of one session of the C engine, refilled as sequences stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from storyllamas.engine.ffi import check, ffi, ids_pointer, lib, string, utf8, whole_ids
from storyllamas.errors import UserError

BATCH_SIZE = 16
"""The default number of stories that are generated at a time; see bench/LOG.md."""

_MAX_WAITING = 16
"""Finished stories for each slot that may wait for an earlier story."""


@dataclass(frozen=True)
class GeneratedStory:
    """A finished story.

    Attributes:
        index: its position among the stories, from 0.
        seed: the seed with which `Engine.generate` generates the same story.
        prompt: the text that it continues; empty if that was given as ids.
        text: the whole text, prompt included.
        ids: the generated tokens, without the prompt and EOS.
        stop: why it stopped: "eos", "bos", "max_tokens" or "context".
    """

    index: int
    seed: int
    prompt: str
    text: str
    ids: list[int]
    stop: str

    @property
    def tokens(self) -> int:
        """The number of generated tokens."""
        return len(self.ids)


@dataclass
class _Sequence:
    """A story that is being generated in a slot."""

    index: int
    seed: int
    prompt: str
    ids: list[int] = field(default_factory=list)
    text: list[bytes] = field(default_factory=list)

    def finish(self, stop: int) -> GeneratedStory:
        text = self.prompt + b"".join(self.text).decode()
        name = string(lib.sl_stop_name(stop))
        return GeneratedStory(self.index, self.seed, self.prompt, text, self.ids, name)


class _Slots:
    """The slots of a session; all stories have the same options except for their seeds."""

    def __init__(self, session: Any, count: int, options: Any) -> None:
        self._session = session
        self._options = options
        self._first_seed: int = options.seed
        self._pieces = ffi.new("sl_piece[]", count)
        self.running: dict[int, _Sequence] = {}  # by slot
        self.failed: dict[int, str] = {}  # messages by index
        self.free = list(reversed(range(count)))

    def start(self, index: int, prompt: str | Sequence[int]) -> None:
        """Start a story in a free slot."""
        self._options.seed = (self._first_seed + index) % 2**64
        slot = self.free[-1]
        options = ffi.addressof(self._options)
        try:
            if isinstance(prompt, str):
                text = utf8(prompt)
                check(lib.sl_start_slot(self._session, slot, text, len(text), options))
            else:
                ids = whole_ids(prompt)
                pointer = ids_pointer(ids)
                check(lib.sl_start_slot_ids(self._session, slot, pointer, len(ids), options))
        except UserError as error:
            raise UserError(f"story {index}: {error}") from None
        shown = prompt if isinstance(prompt, str) else ""
        self.running[self.free.pop()] = _Sequence(index, self._options.seed, shown)

    def step(self) -> Iterator[GeneratedStory]:
        """Generate the next token in every slot and yield the stories that stopped.

        A story whose logits are not finite moves to `failed`; the others continue.
        """
        status = lib.sl_step(self._session, self._pieces)
        if status not in (lib.SL_OK, lib.SL_ERROR_NUMBER):
            check(status)
        message = string(lib.sl_error()) if status else ""
        for slot, sequence in list(self.running.items()):
            piece = self._pieces[slot]
            if piece.length:
                sequence.text.append(ffi.buffer(piece.text, piece.length)[:])
            if piece.stop:
                del self.running[slot]
                self.free.append(slot)
            if piece.stop == lib.SL_IDLE:
                self.failed[sequence.index] = f"story {sequence.index}: {message}"
            elif piece.stop:
                yield sequence.finish(piece.stop)
            else:
                sequence.ids.append(piece.id)


def generate_batch(
    session: Any, slots: int, prompts: Iterable[str | Sequence[int]], options: Any
) -> Iterator[GeneratedStory]:
    """Generate a story for each prompt and yield them in the order of the prompts.

    Args:
        session: an `sl_session` with `slots` slots that nobody else uses.
        slots: the number of stories that are generated at a time.
        prompts: any number of prompts, texts or ids; they are taken as slots become free.
        options: `sl_options` with the seed of the first story.

    Raises:
        UserError: a prompt is longer than the context or is not valid Unicode, or the logits of a
            story are not finite, after the stories before it; the message names the story.
    """
    batch = _Slots(session, slots, options)
    waiting = enumerate(prompts)
    finished: dict[int, GeneratedStory] = {}
    following = 0
    while True:
        has_room = len(finished) < _MAX_WAITING * slots
        while batch.free and has_room and (pair := next(waiting, None)):
            batch.start(*pair)
        if not batch.running:
            return
        finished |= {story.index: story for story in batch.step()}
        while following in finished:
            yield finished.pop(following)
            following += 1
        if following in batch.failed:
            raise UserError(batch.failed[following])
