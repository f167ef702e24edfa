"""Stopping a run in order: on Ctrl-C or a termination signal, or when its parent has ended."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_orphaned(parent: int | None) -> bool:
    """Return whether the process `parent`, if it is DVC or torchrun, has ended."""
    watched = "DVC_STAGE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    return watched and parent is not None and os.getppid() != parent


class Interrupt:
    """A handler of the first signal, which the loop polls; a second signal acts as usual.

    Attributes:
        requested: whether a signal asked the run to stop.
    """

    def __init__(self, parent: int | None = None) -> None:
        """Watch also whether the process `parent`, if it is DVC or torchrun, has ended."""
        self.requested = False
        self._parent = parent

    def __enter__(self) -> Interrupt:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._previous[signal.Signals(number)])
        # print must not be entered again if the signal came in the middle of one.
        os.write(1, b"\nfinishing this step; interrupt again to stop at once\n")

    def check_parent(self) -> None:
        """Stop if DVC was killed: its next run would otherwise wait for this process.

        Raises:
            SystemExit: the parent has ended.
        """
        if is_orphaned(self._parent):
            raise SystemExit(
                "dvc or torchrun has ended: stopping; the next run resumes from the last checkpoint"
            )

    def exit(self, step: int, resumption: str) -> NoReturn:
        """Exit after a step; `resumption` is how the next run begins."""
        raise SystemExit(f"stopped after step {step}: the same command {resumption}")
