"""Renders chat templates in a process of its own, so that none can hang or fill up this one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from storyllamas.chat import template as program
from storyllamas.chat.template import Message
from storyllamas.errors import UserError

SHOWN = 200
"""Characters of a template's own message that an error shows."""


class Renderer:
    """The chat template of a model.

    Attributes:
        path: the weight file, for messages.
    """

    def __init__(
        self,
        path: object,
        template: str,
        tokens: Mapping[str, str],
        *,
        seconds: int = program.MAX_SECONDS,
        memory: int = program.MAX_MEMORY,
    ) -> None:
        """Take a template; the process starts when it is needed.

        Args:
            path: the weight file.
            template: its chat template.
            tokens: `bos_token`, `eos_token` and so on, those that the model has.
            seconds: the processor time that a conversation may take, 1 and up.
            memory: the address space of the process, in bytes.
        """
        self.path = path
        self._request = {"template": template, "tokens": dict(tokens)}
        self._seconds = seconds
        self._memory = memory
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; the next use starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the text of a conversation.

        Args:
            messages: each has a role and a content.
            add_generation_prompt: end with the beginning of a reply.

        Raises:
            UserError: the template is wrong, rejects the conversation, or takes too much time or
                memory.
        """
        asked = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        answer = self._ask(self._request | asked)
        if "rejected" in answer:
            raise UserError(
                f"the chat template of {self.path} rejects the conversation: "
                f"{_shown(answer['rejected'])}"
            )
        if "error" in answer:
            raise self._failure(_shown(answer["error"]))
        return answer["text"]

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            limits = [str(self._seconds), str(self._memory)]
            self._process = subprocess.Popen(
                [sys.executable, "-I", program.__file__, *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
        return self._process

    def _ask(self, request: dict[str, Any]) -> dict[str, str]:
        process = self._started()
        try:
            line = _exchange(process, json.dumps(request) + "\n")
            if not line.endswith("\n"):
                raise self._failure(self._death(process))
        except BaseException:
            self.close()  # its answer to a request that was interrupted would come next
            raise
        answer: dict[str, str] = json.loads(line)
        return answer

    def _death(self, process: subprocess.Popen[str]) -> str:
        if process.wait() in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"it takes more than {self._seconds} seconds"
        return "the process that renders it ended, for want of memory or of jinja2"

    def _failure(self, reason: str) -> UserError:
        return UserError(
            f"the chat template of {self.path} cannot be rendered ({reason}): use "
            "`storyllamas generate`, which needs no template"
        )


def _exchange(process: subprocess.Popen[str], line: str) -> str:
    """Write a line to a process and return the line that it answers, "" if it ended."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def _shown(message: str) -> str:
    """Put a message of a template on one line, with an ellipsis if it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return line if len(line) <= SHOWN else line[:SHOWN] + "…"
