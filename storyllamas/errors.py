"""The exception for mistakes of the user, and how a command reports them."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

P = ParamSpec("P")


class UserError(Exception):
    """An error in a file, option or parameter of the user.

    The message is one sentence that names the thing, the value, and what to do.
    """


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
