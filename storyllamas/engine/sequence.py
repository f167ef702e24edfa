"""A sequence whose key-value cache is reused by the next one, for conversations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain

from storyllamas.engine.engine import Engine
from storyllamas.engine.ffi import check, ffi, ids_pointer, lib, string, whole_ids
from storyllamas.engine.options import make_options

STEP = 256
"""Tokens of a prompt that go through the model between two chances to interrupt it."""


class CachedSequence:
    """A session of the C engine whose sequences begin alike.

    Attributes:
        ids: the prompt and the generated tokens, without the one that ended the sequence.
        reused: the tokens of the prompt that were in the cache already.
        stop: why the sequence stopped: "eos", "bos", "max_tokens" or "context"; "" while it is
            running, and if it was interrupted.
    """

    def __init__(self, engine: Engine) -> None:
        """Make a session with an empty cache."""
        self._engine = engine
        self._session = engine._new_session(1)
        self.ids: list[int] = []
        self.reused = 0
        self.stop = ""

    def check_options(self, **options: float | None) -> None:
        """Check options before there is a prompt.

        Raises:
            UserError: an option is out of its range.
        """
        self._engine._checked(make_options(options))

    def generate(
        self,
        prompt: Sequence[int],
        stop_ids: Collection[int] = (),
        **options: float | None,
    ) -> Iterator[str]:
        """Generate what follows a prompt, which is the text that `Engine.generate` gives.

        What the prompt has in common with the beginning of `ids` is in the cache and is not
        computed again.

        Args:
            prompt: the ids of the prompt.
            stop_ids: ids that end the sequence as EOS does.
            **options: as for `Engine.generate`.

        Returns:
            An iterator over the text after the prompt, piece by piece.

        Raises:
            UserError: an option is out of its range, or the prompt is longer than the context.
        """
        array = whole_ids(prompt)
        chosen = make_options(options)
        kept, piece = ffi.new("size_t *"), ffi.new("sl_piece *")
        self.stop = ""
        first = _common(self.ids, prompt) + STEP
        fits = len(array) <= self._engine.context  # otherwise the old sequence stays
        for end in chain(range(first, len(array), STEP) if fits else (), [len(array)]):
            pointer = ids_pointer(array)
            check(lib.sl_continue_ids(self._session, pointer, end, ffi.addressof(chosen), kept))
            self.ids = array[:end].tolist()
            if end <= first:
                self.reused = kept[0]
        while not self.stop:
            check(lib.sl_next(self._session, piece))
            if piece.stop:
                self.stop = string(lib.sl_stop_name(piece.stop))
            elif piece.id in stop_ids:
                self.stop = "eos"
                return
            else:
                self.ids.append(piece.id)
            if piece.length:
                yield bytes(ffi.buffer(piece.text, piece.length)).decode()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many ids two lists begin with in common."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
