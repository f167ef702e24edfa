"""A measured program in its own process, which answers requests; worker.h describes them."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from bench import build
from storyllamas.errors import UserError

TIMEOUT_SECONDS = 300.0
"""A worker that takes longer for a request is killed."""


class WorkerError(UserError):
    """A worker that crashed, exited, or gave no valid answer.

    Attributes:
        reason: what happened, in a word or two: "SIGILL", "exit 1", "timeout".
        detail: the last line that the worker printed to stderr; "" if there is none.
    """

    def __init__(self, command: Sequence[str], request: str, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        text = f"{' '.join(command)}: {reason} at the request {request!r}"
        super().__init__(f"{text}: {detail}" if detail else text)


class Worker:
    """A running worker.

    Pause it between requests: idle threads may spin and take time from the next worker.
    """

    def __init__(self, command: Sequence[str], timeout: float = TIMEOUT_SECONDS) -> None:
        """Start the worker.

        Args:
            command: program and arguments.
            timeout: seconds for an answer.

        Raises:
            WorkerError: the program cannot be started.
        """
        self._command, self._timeout = list(command), timeout
        self._has_expired = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        try:
            self._process = subprocess.Popen(
                self._command,
                cwd=build.ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            self._errors.close()
            raise WorkerError(command, "start", "cannot start", str(error.strerror)) from None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def resume(self) -> None:
        """Continue the process."""
        self._process.send_signal(signal.SIGCONT)

    def pause(self) -> None:
        """Stop the process until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, request: str) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            WorkerError: the process crashed, exited, or gave no valid answer in time.
        """
        pipe, answers = self._process.stdin, self._process.stdout
        assert pipe
        assert answers
        timer = threading.Timer(self._timeout, self._expire)
        timer.start()
        try:
            pipe.write(request + "\n")
            pipe.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        timer.cancel()
        if not line:
            reason = "timeout" if self._has_expired else exit_reason(self._process.wait())
            raise WorkerError(self._command, request, reason, self._last_error())
        try:
            answer: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            raise WorkerError(self._command, request, "invalid answer", line.strip()) from None
        return answer

    def _expire(self) -> None:
        self._has_expired = True
        self._process.kill()

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def exit_reason(status: int) -> str:
    """Return the name of the signal, or "exit" and the status of a process.

    Args:
        status: as `subprocess.Popen.returncode`; negative for a signal.
    """
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
