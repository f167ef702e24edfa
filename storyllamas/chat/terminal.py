"""`storyllamas chat`: a conversation at a terminal, or line by line from a pipe."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storyllamas.chat.conversation import Conversation, special_tokens
from storyllamas.chat.renderer import Renderer
from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.prompts import check_standard_input

PROMPT = "> "

STOPS = {
    "max_tokens": "the reply is cut off after {max_tokens} tokens: --max-tokens allows more",
    "context": "the reply is cut off where the context of {context} tokens is full: the next turn "
    "makes room",
}
"""What to say about a reply that the model did not end itself."""


def chat(engine: Engine, path: Path, system: str | None, options: dict[str, float | None]) -> None:
    """Hold a conversation until the input ends. A line is a turn; empty ones are skipped.

    Args:
        engine: the model.
        path: its weight file, for messages.
        system: the system message; None: that of the template, if it has one.
        options: as for `Conversation`.

    Raises:
        UserError: the model has no chat template. If the input is no terminal, any error of a turn.
    """
    if not engine.chat_template:
        raise UserError(
            f"{path} has no chat template, so it is no model for conversations: use "
            "`storyllamas generate`, or import a model that has one"
        )
    check_standard_input()
    with Renderer(path, engine.chat_template, special_tokens(engine)) as renderer:
        conversation = Conversation(engine, renderer, system=system, note=_note, **options)
        facts = {"max_tokens": options.get("max_tokens"), "context": engine.context}
        is_terminal = sys.stdin.isatty()
        for line in _lines_of_terminal() if is_terminal else _lines_of_pipe():
            if not line.strip():
                continue
            try:
                _print_reply(conversation, line, is_terminal)
            except UserError as error:
                if not is_terminal:
                    raise
                print(f"error: {error}", file=sys.stderr)
            else:
                if conversation.stop in STOPS:
                    _note(STOPS[conversation.stop].format(**facts))


def _print_reply(conversation: Conversation, line: str, is_terminal: bool) -> None:
    reply = conversation.reply(line)
    try:
        for piece in reply:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        reply.close()
        if not is_terminal:
            raise
    print(flush=True)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _lines_of_terminal() -> Iterator[str]:
    """Yield lines until Ctrl-D; Ctrl-C begins the line again."""
    with suppress(ImportError):
        importlib.import_module("readline")  # with it, input() edits lines and recalls them
    prompt = PROMPT if sys.stdout.isatty() else ""
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def _lines_of_pipe() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number} of standard input is not UTF-8 text ({error.reason}): convert it"
            ) from None
