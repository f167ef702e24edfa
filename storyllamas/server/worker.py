"""One thread that generates the sequences of all clients in one batched session."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from typing import Any

from storyllamas.engine.engine import Engine
from storyllamas.engine.ffi import check, ffi, ids_pointer, lib, string, whole_ids
from storyllamas.engine.logprobs import Logprobs
from storyllamas.engine.options import make_options
from storyllamas.errors import UserError

STOPPING = "the server is stopping: send the request again later"


class QueueFullError(UserError):
    """As many sequences wait as may wait."""


@dataclass(slots=True)
class Piece:
    """A generated token.

    Attributes:
        text: the text of the token; it may be empty.
        id: the token; -1: the sequence stopped without one.
        stop: why the sequence ends here, as in `Story.stop`; "" while it is running.
        error: a message if the sequence failed, else "".
        logprobs: of the token, if the options ask for them.
    """

    text: str = ""
    id: int = -1
    stop: str = ""
    error: str = ""
    logprobs: Logprobs | None = None


@dataclass(eq=False)
class Sequence:
    """A sequence of a client; `cancel` ends it before the next token.

    Attributes:
        prompt: its ids, BOS included.
        options: `sl_options`.
        deliver: gets each piece in the thread of the worker, and must not block. It returns whether
            the client waits for what it has now.
        client: whom the worker notifies if so.
    """

    prompt: Ids[int]
    options: Any
    deliver: Callable[[Piece], bool]
    client: Any = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Free the slot before the next token; a second call is a no-op."""
        self.cancelled.set()


class Worker:
    """A thread with a session of several slots, which sequences join and leave.

    Each sequence is the one that `Engine.generate` gives for its prompt and options.
    """

    def __init__(
        self, engine: Engine, slots: int, max_waiting: int, notify: Callable[[list[Any]], None]
    ) -> None:
        """Start the thread.

        Args:
            engine: the model.
            slots: the number of sequences that are generated at a time, 1 … 256.
            max_waiting: the number of further sequences that may wait for a slot; 0 and up.
            notify: is called in the thread after a step, with the clients that wait for what they
                have now; it must not block.

        Raises:
            UserError: slots is out of its range.
        """
        if not 1 <= slots <= lib.SL_MAX_SLOTS:
            raise UserError(f"slots is {slots} and must be 1 to {lib.SL_MAX_SLOTS}")
        self._session = engine._new_session(slots)
        self._pieces = ffi.new("sl_piece[]", slots)
        self._notify = notify
        self._capacity = slots + max_waiting
        self._changed = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # by slot
        self._free = list(reversed(range(slots)))
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, sequences: list[Sequence]) -> None:
        """Add all sequences, or none of them.

        Raises:
            QueueFullError: there is no room for all now.
            UserError: there never is, or the worker is closed.
        """
        with self._changed:
            if self._closed:
                raise UserError(STOPPING)
            if len(sequences) > self._capacity:
                raise UserError(
                    f"the request has {len(sequences)} sequences, and this server takes at most "
                    f"{self._capacity} at a time: send several requests, or start it with more "
                    "--slots or --max-waiting"
                )
            taken = len(self._waiting) + len(self._running)
            if taken + len(sequences) > self._capacity:
                raise QueueFullError(
                    f"{taken} of {self._capacity} places for sequences are taken, and the request "
                    f"has {len(sequences)}: try again later"
                )
            self._waiting.extend(sequences)
            self._changed.notify()

    def load(self) -> tuple[int, int]:
        """Return the numbers of sequences that are running and that wait."""
        with self._changed:
            return len(self._running), len(self._waiting)

    def stop(self) -> None:
        """End all sequences after their next token, without waiting for that."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def close(self) -> None:
        """End all sequences and the thread; a second call is a no-op."""
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._running)
                if self._closed:
                    break
                self._drop_cancelled()
                failed = self._fill_slots()
            self._deliver(failed)
            if self._running:
                self._deliver(self._step())
        rest = [*self._running.values(), *self._waiting]
        self._deliver([(sequence, Piece(error=STOPPING)) for sequence in rest])

    def _drop_cancelled(self) -> None:
        if any(each.cancelled.is_set() for each in self._waiting):
            self._waiting = deque(each for each in self._waiting if not each.cancelled.is_set())
        for slot, sequence in list(self._running.items()):
            if sequence.cancelled.is_set():
                self._release(slot)
                # A sequence of one token takes the place of the old one, which ends it.
                options = make_options({"max_tokens": 1})
                check(lib.sl_start_slot_ids(self._session, slot, [0], 1, ffi.addressof(options)))

    def _fill_slots(self) -> list[tuple[Sequence, Piece]]:
        """Start waiting sequences; return those that cannot start, and why."""
        failed = []
        while self._waiting and self._free:
            sequence = self._waiting.popleft()
            slot = self._free[-1]
            try:
                ids = whole_ids(sequence.prompt)
                options = ffi.addressof(sequence.options)
                check(
                    lib.sl_start_slot_ids(self._session, slot, ids_pointer(ids), len(ids), options)
                )
            except UserError as error:
                failed.append((sequence, Piece(error=str(error))))
            else:
                self._running[self._free.pop()] = sequence
        return failed

    def _step(self) -> list[tuple[Sequence, Piece]]:
        status = lib.sl_step(self._session, self._pieces)
        message = string(lib.sl_error()) if status else ""
        pieces = []
        ended = []
        for slot, sequence in self._running.items():
            piece = self._pieces[slot]
            failed = bool(status) and (status != lib.SL_ERROR_NUMBER or piece.stop == lib.SL_IDLE)
            if failed or piece.stop:
                ended.append(slot)
            pieces.append((sequence, Piece(error=message) if failed else _read(piece)))
        if ended:
            with self._changed:
                for slot in ended:
                    self._release(slot)
        return pieces

    def _deliver(self, pieces: list[tuple[Sequence, Piece]]) -> None:
        """Deliver pieces, and notify each client once."""
        due = {sequence.client for sequence, piece in pieces if sequence.deliver(piece)}
        if due:
            self._notify(list(due))

    def _release(self, slot: int) -> None:
        del self._running[slot]
        self._free.append(slot)


def _read(piece: Any) -> Piece:
    text = ffi.buffer(piece.text, piece.length)[:].decode()
    stop = string(lib.sl_stop_name(piece.stop)) if piece.stop else ""
    return Piece(text, piece.id, stop, "", Logprobs.of(piece) if piece.top_count else None)
