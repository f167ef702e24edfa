"""Leaving a run in order: on Ctrl-C or a termination signal, or when nobody waits for it."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def orphaned(parent: int | None) -> bool:
    """Whether `parent`, which waits for this process, is gone; if that is DVC or torchrun."""
    watched = "DVC_STAGE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    return watched and parent is not None and os.getppid() != parent


class Interrupt:
    """Turns the first signal into a question that the loop asks; a second one acts as usual."""

    def __init__(self, parent: int | None = None) -> None:
        """Watch also for the end of the process `parent`, if that is DVC or torchrun."""
        self.asked = False
        self._parent = parent

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])
        # Not print, which must not be entered again if the signal came in the middle of one.
        os.write(1, b"\nfinishing this step; once more to stop at once\n")

    def check_parent(self) -> None:
        """Stop if DVC was killed: its next run would otherwise wait for this orphan."""
        if orphaned(self._parent):
            raise SystemExit(
                "dvc or torchrun is gone: stopping; the next run goes on from the last checkpoint"
            )

    def leave(self, step: int, resumption: str) -> NoReturn:
        """Stop after a step; `resumption` is what the next run does."""
        raise SystemExit(f"stopped after step {step}: the same command {resumption}")
