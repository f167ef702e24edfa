"""The options of the sampler, which `generate` and `chat` share."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from storyllamas.argument_types import real, whole

OPTIONS: dict[str, tuple[type, str]] = {
    "seed": (
        int,
        "0 and up; the same seed generates the same story; random takes one and prints it on "
        "standard error",
    ),
    "max_tokens": (int, "generate at most N tokens, 1 and up"),
    "ignore_eos": (bool, "continue after the end-of-story token"),
    "temperature": (float, "0 to 1000; 0 takes the most probable token"),
    "top_k": (int, "sample from the N most probable tokens; 0 is off"),
    "top_p": (
        float,
        "sample from the most probable tokens that together have this probability, above 0, "
        "up to 1; 1 is off",
    ),
    "min_p": (
        float,
        "exclude tokens less probable than X times the most probable one, 0 up to below 1; "
        "0 is off",
    ),
    "repetition_penalty": (
        float,
        "divide the logits of recent tokens by X, above 0, up to 1000; 1 is off",
    ),
    "repetition_window": (int, "the last N tokens are recent, 0 and up"),
}
"""The type and the help of each option that `Engine.generate` takes."""


RANDOM = "random"
"""The value of --seed that takes any seed."""


def add_sampler_options(
    parser: argparse.ArgumentParser,
    names: Iterable[str] = OPTIONS,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Add options of the sampler.

    Args:
        parser: the parser of the command.
        names: keys of `OPTIONS`.
        texts: the help of options that mean something else in the command.
    """
    for name in names:
        kind, text = OPTIONS[name]
        text = (texts or {}).get(name, text)
        flag = f"--{name.replace('_', '-')}"
        if name == "seed":
            parser.add_argument(flag, type=_seed, metavar="N|random", help=text)
        elif kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
        else:
            parse, metavar = (whole, "N") if kind is int else (real, "X")
            parser.add_argument(flag, type=parse, metavar=metavar, help=text)


def _seed(text: str) -> int | str:
    return text if text == RANDOM else whole(text)


def sampler_options(
    arguments: argparse.Namespace, names: Iterable[str] = OPTIONS
) -> dict[str, Any]:
    """Return the values of options; print the seed if it is a random one."""
    options = {name: getattr(arguments, name) for name in names}
    if options["seed"] == RANDOM:
        options["seed"] = secrets.randbits(32)
        print(f"seed {options['seed']}", file=sys.stderr)
    return options
