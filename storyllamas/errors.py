"""The exception for mistakes of the user, and how a command reports them."""

from __future__ import annotations

import functools
import io
import sys
import unicodedata
from collections.abc import Callable
from typing import NoReturn, ParamSpec

P = ParamSpec("P")


MAX_MESSAGE = 800
"""Characters of a message; a value in it may be of any length."""

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, surrogates, and separators of lines."""

DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""The errors that code raises for data of another structure than it expects."""


class UserError(Exception):
    """An error in a file, option or parameter of the user.

    The message is one sentence that names the thing, the value, and what to do. It is one line,
    whatever a file has in the places of names and values.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """Escape what breaks or controls a line; leave out the middle of a long message."""
    if not message.isprintable():
        message = "".join(
            repr(each)[1:-1] if unicodedata.category(each) in _CONTROLS else each
            for each in message
        )
    if len(message) > MAX_MESSAGE:
        message = f"{message[: MAX_MESSAGE // 2]} … {message[-MAX_MESSAGE // 2 :]}"
    return message


def exit_on_user_error(main: Callable[P, object]) -> Callable[P, NoReturn]:
    """Wrap an entry point so that it ends with an exit status instead of a traceback.

    A `UserError` or `OSError` becomes `error: …` on stderr and status 1. Ctrl-C becomes status 130.
    A character that the terminal's encoding lacks is printed as a question mark.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> NoReturn:
        _replace_unencodable()
        try:
            main(*args, **kwargs)
        except UserError as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            what = error.filename or "a file or connection"
            sys.exit(f"error: {what} cannot be used: {error.strerror or error}")
        except KeyboardInterrupt:
            sys.exit(130)
        sys.exit(0)

    return wrapped


def _replace_unencodable() -> None:
    """Print characters that the encoding of the terminal lacks as question marks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
