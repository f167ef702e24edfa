"""The texts at which a client wants a completion to end."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes text on up to the first stop text in it.

    What may be the beginning of a stop text is held back until it is known.

    Attributes:
        is_found: a stop text has come.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the stop texts; none is empty."""
        self._stops = stops
        self._held = ""
        self.is_found = False

    def add(self, text: str) -> str:
        """Return what is surely in front of a stop text."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_found = True
            return self._held[: min(found)]
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        end = len(self._held) - keep
        passed, self._held = self._held[:end], self._held[end:]
        return passed

    def rest(self) -> str:
        """Return what is held back, since no more text comes."""
        return self._held

    def _overlap(self, stop: str) -> int:
        """Return how many characters at the end of the text begin a stop text."""
        longest = min(len(stop) - 1, len(self._held))
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if self._held.endswith(stop[:n])), 0)
