"""`make report`: write one HTML file with the results of all runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from storyllamas.argument_types import named_path
from storyllamas.atomic import write_text
from storyllamas.errors import exit_on_user_error
from storyllamas.extras import needs

TARGET = Path("build/report.html")


@exit_on_user_error
def main() -> None:
    """Write the page and print its path."""
    parser = argparse.ArgumentParser(prog="python -m storyllamas.report", description=__doc__)
    parser.add_argument(
        "--base", default="", metavar="EXP", help="experiment or revision to compare with"
    )
    parser.add_argument("--out", type=named_path, default=TARGET, help=f"default: {TARGET}")
    parser.add_argument(
        "--models",
        type=named_path,
        nargs="+",
        metavar="FILE",
        help="default: those in models/*/export and models/pretrained",
    )
    arguments = parser.parse_args()
    with needs("train"):
        from storyllamas.report.collect import collect
    with needs("report"):
        from storyllamas.report.page import html

    report = collect(arguments.base, arguments.models)
    write_text(arguments.out, html(report))
    count = sum(len(prompt.stories) for prompt in report.prompts)
    print(f"{arguments.out}: runs: {len(report.runs)}, stories: {count}")


if __name__ == "__main__":
    main()
