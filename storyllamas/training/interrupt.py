"""Stopping a run cleanly: on Ctrl-C or a termination signal, or when its parent has ended."""

from __future__ import annotations

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_run_by_dvc() -> bool:
    """Return whether this process is the command of a DVC stage."""
    return "DVC_STAGE" in os.environ


def is_orphaned(parent: int | None) -> bool:
    """Return whether the process `parent`, if it is DVC or torchrun, has ended."""
    watched = is_run_by_dvc() or "TORCHELASTIC_RUN_ID" in os.environ
    return watched and parent is not None and os.getppid() != parent


class Interrupt:
    """A handler of the first signal, which the loop polls; a second signal acts as usual.

    Attributes:
        requested: whether a signal asked the run to stop.
        status: exit status of a run that it stopped, 128 + the number of the signal.
    """

    def __init__(self, parent: int | None = None) -> None:
        """Watch also whether the process `parent`, if it is DVC or torchrun, has ended."""
        self.requested = False
        self.status = 128 + signal.SIGTERM
        self._parent = parent

    def __enter__(self) -> Interrupt:
        # nohup ignores SIGHUP.
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        handled = [n for n in SIGNALS if not (ignored and n == signal.SIGHUP)]
        self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.status = True, 128 + number
        signal.signal(number, self._previous[signal.Signals(number)])
        try:
            # print must not be entered again if the signal came in the middle of one.
            os.write(1, b"\nfinishing this step; interrupt again to stop at once\n")
        except OSError:
            _discard_output()

    def check_parent(self) -> None:
        """Stop if DVC was killed: its next run would otherwise wait for this process.

        After a signal, which may have ended both, the run finishes its step first.

        Raises:
            SystemExit: the parent has ended.
        """
        if not self.requested and is_orphaned(self._parent):
            raise SystemExit(
                "dvc or torchrun has ended: stopping; the next run resumes from the last checkpoint"
            )


def _discard_output() -> None:
    """Discard what the run prints from now on: its terminal was closed."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    os.close(null)
