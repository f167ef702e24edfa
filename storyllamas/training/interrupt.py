"""Leaving a run in order: on Ctrl-C or a termination signal, or when nobody waits for it."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Turns the first signal into a question that the loop asks; a second one acts as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._parent = os.getppid()
        self._under_dvc = "DVC_STAGE" in os.environ

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])
        print("\nfinishing this step; once more to stop at once", flush=True)

    def check_parent(self) -> None:
        """Stop if DVC was killed: its next run would otherwise wait for this orphan."""
        if self._under_dvc and os.getppid() != self._parent:
            raise SystemExit("dvc is gone: stopping; the next run goes on from the last checkpoint")

    def leave(self, step: int) -> NoReturn:
        """Stop after a checkpoint of that step."""
        raise SystemExit(f"stopped after step {step}: the same command goes on from there")
