"""The command `storyllamas plan`."""

from __future__ import annotations

import argparse
import json

SUMMARY = "estimate what training costs here"

DESCRIPTION = """\
Estimate what training costs on this machine, for each size of the chosen recipe: tokens a second,
time, peak memory, disk, energy where the system tells, and the expected loss.

It takes a few steps of each size on random tokens, at most 20 seconds in all, so that it needs no
corpus. Runs that this project has trained on this machine make it more exact. The expected loss is
fitted to your finished runs with the same corpus, tokenizer and hyperparameters.
"""

EXTRA = "train"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        *("-S", "--set-param"),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a parameter for this estimate, as `dvc exp run -S` does; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import psutil

    from storyllamas.plan import make, table

    plan = make.make(arguments.set_param, psutil.Process().create_time())
    if arguments.json:
        print(json.dumps(table.as_json(plan), indent=2))
    else:
        print(table.as_text(plan))
