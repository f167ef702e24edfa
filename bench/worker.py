"""A measured program in its own process, which answers requests; worker.h describes them."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import build
from storyllamas.errors import UserError

TIMEOUT_SECONDS = 120.0
"""A worker that takes longer for a request is killed. The first request includes loading."""

TIMED_OUT = "timed out"

MAX_LINE = 2**20
"""Characters of the longest answer."""

MAX_DETAIL = 200
"""Characters of a worker's output that a failure repeats."""

EXIT_SECONDS = 5.0
"""A worker that closes its output must end within this time."""


class WorkerError(UserError):
    """A worker that crashed, exited, or gave no valid answer.

    Attributes:
        reason: what happened, in a word or two: "SIGILL", "exit status 1", "timed out".
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
                errors="replace",
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

        Returns:
            the answer as worker.h describes it; {} if the worker cannot do the request.

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
            line = answers.readline(MAX_LINE)
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if self._has_expired:
            raise WorkerError(self._command, request, TIMED_OUT, self._last_error())
        if not line:
            raise WorkerError(self._command, request, self._end(), self._last_error())
        answer = _parse(line, request.split()[0])
        if answer is None:
            detail = line.strip()[:MAX_DETAIL]
            raise WorkerError(self._command, request, "invalid answer", detail)
        return answer

    def _end(self) -> str:
        """Wait for the end of a process without output and return the reason."""
        try:
            return exit_reason(self._process.wait(EXIT_SECONDS))
        except subprocess.TimeoutExpired:
            return TIMED_OUT

    def _expire(self) -> None:
        self._has_expired = True
        self._process.kill()

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return last[:MAX_DETAIL]


def _parse(line: str, request: str) -> dict[str, Any] | None:
    """Return the answer to a request, named by its first word, or None if it is not valid."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    if not isinstance(answer, dict):
        return None
    if request == "greedy":
        ids = answer.get("ids")
        return answer if isinstance(ids, list) and {*map(type, ids)} <= {int} else None
    if request == "about":
        return answer if isinstance(answer.get("about"), str) else None
    value = answer.get("operations" if request == "peak" else "seconds")
    is_measured = isinstance(value, float | int) and 0 < value < math.inf
    return answer if is_measured or not answer else None


def exit_reason(status: int) -> str:
    """Return the name of the signal, or "exit status" and the status of a process.

    Args:
        status: as `subprocess.Popen.returncode`; negative for a signal.
    """
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def is_signal(reason: str) -> bool:
    """Return whether a reason of `exit_reason` is a signal."""
    return reason.startswith(("SIG", "signal "))


def run_limited(command: Sequence[str | Path], timeout: float) -> tuple[str, str]:
    """Run a program that may crash or hang; kill its children, too, if it hangs.

    Args:
        command: program and arguments.
        timeout: seconds.

    Returns:
        what it printed, and why it failed, with the last line of its output to stderr; "" if it
        did not.
    """
    with subprocess.Popen(
        command,
        cwd=build.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "", TIMED_OUT
    if not process.returncode:
        return output, ""
    last = (errors.strip().splitlines() or [""])[-1][:MAX_DETAIL]
    return output, f"{exit_reason(process.returncode)}: {last}".removesuffix(": ")
