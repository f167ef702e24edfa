"""When a run's state is kept, and what happens where it cannot be."""

from __future__ import annotations

import time
from collections.abc import Callable

from storyllamas.disk import refusal
from storyllamas.training.run_folder import RunFolder, State

MOST_SHARE = 0.02


class Keeper:
    """Keeps the state of a run now and then.

    A disk that takes none is no reason to stop: the run may end well without, or find room later.

    Attributes:
        step: of the newest state that is kept; 0: there is none.
        seconds: what keeping them took.
    """

    def __init__(self, folder: RunFolder, every: float, step: int, seconds: float) -> None:
        """Begin to count.

        Args:
            folder: where states are kept.
            every: seconds between two of them, or more, so that they take no more than
                `MOST_SHARE` of the time; 0: after each step.
            step: of the state that the run goes on from.
            seconds: what keeping states took before.
        """
        self.step, self.seconds = step, seconds
        self._folder, self._every = folder, every
        self._wait = every
        self._since = time.monotonic()
        self._failed = False

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._since >= self._wait

    @property
    def resumption(self) -> str:
        """What the next run does."""
        return f"goes on from step {self.step}" if self.step else "begins anew"

    def keep(self, state: Callable[[], State], last: bool = False) -> None:
        """Keep the state; where that fails, say so once until it works again.

        Args:
            state: makes it.
            last: there will be no other.
        """
        begun = time.monotonic()
        now = state()
        try:
            self._folder.save(now)
        except OSError as error:
            if last or not self._failed:
                self._warn(now, error, last)
            self._failed = True
        else:
            if self._failed:
                print(f"the checkpoint of step {now.step} could be written again", flush=True)
            self.step, self._failed = now.step, False
        self._since = time.monotonic()
        took = self._since - begun
        self.seconds += took
        self._wait = max(self._every, took / MOST_SHARE) if self._every else 0

    def _warn(self, state: State, error: OSError, last: bool) -> None:
        kept = f"that of step {self.step} is kept" if self.step else "there is none yet"
        why = refusal(error, self._folder.path, state.bytes)
        hope = "" if last else "; training goes on and tries again"
        print(f"no checkpoint of step {state.step}, {kept}: {why}{hope}", flush=True)
