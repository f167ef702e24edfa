"""The report as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.resources import files
from itertools import pairwise

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from storyllamas.experiments import git
from storyllamas.report import charts, stories
from storyllamas.report.collect import Report
from storyllamas.report.runs import Run
from storyllamas.report.tables import Cell, cell, title

RUN_COLUMNS = (
    "parameters",
    "steps",
    "tokens",
    "validation_loss",
    "framed_bits_per_byte",
    "seconds",
)
"""The metrics of training in the table of runs."""


def html(report: Report) -> str:
    """Return the page: no other file and no connection is needed to show it."""
    drawn = [charts.losses(report.runs), *charts.bits_per_byte(report.runs)]
    environment = Environment(
        loader=PackageLoader("storyllamas.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        report=report,
        run=report.runs[0],
        charts=drawn,
        figures={chart.name: chart.figure for chart in drawn},
        published=charts.PUBLISHED,
        comparable=[run for run in report.runs if run.corpus_name == charts.PUBLISHED_CORPUS],
        run_columns=[title(name) for name in RUN_COLUMNS],
        run_rows=_run_rows(report.runs),
        tokens=stories.compact(report.prompts),
        legend=_legend(),
        css=_parts("base.css", "token_details.css", "page.css"),
        script=_parts("token_details.js", "page.js"),
        library=Markup(charts.script()),
        written=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        commit=git.head()[:7],
    )


def _parts(*names: str) -> Markup:
    """Return style sheets or scripts of this package, one after the other."""
    folder = files("storyllamas.report")
    return Markup("\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names))


def _run_rows(runs: Sequence[Run]) -> list[tuple[Run, charts.Style, list[Cell]]]:
    """Return each run with its style and its cells of `RUN_COLUMNS`."""
    return [
        (run, style, [cell(run.metrics.get(name)) for name in RUN_COLUMNS])
        for run, style in zip(runs, charts.styles(runs), strict=True)
    ]


def _legend() -> list[str]:
    """Return the range of probabilities of each class of tokens."""
    percents = [f"{100 * bound:g}" for bound in stories.CLASSES]
    between = [f"{low} to {high} %" for high, low in pairwise(percents)]
    return [f"{percents[0]} % or more", *between, f"below {percents[-1]} %"]
