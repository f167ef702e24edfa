"""The one exception whose message is meant for the person at the keyboard."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

P = ParamSpec("P")


class UserError(Exception):
    """Something the user gave is wrong.

    The message is one sentence that names the thing, the value, and what would do.
    """


def exit_on_user_error(main: Callable[P, object]) -> Callable[P, NoReturn]:
    """Wrap an entry point, so that it ends in an exit status instead of a traceback.

    A `UserError`, or a file or folder that the system refuses, becomes `error: …` on stderr and
    status 1; Ctrl-C is status 130.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> NoReturn:
        try:
            main(*args, **kwargs)
        except UserError as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            sys.exit(f"error: {error.filename or 'a file'} cannot be used: {error.strerror}")
        except KeyboardInterrupt:
            sys.exit(130)
        sys.exit(0)

    return wrapped
