"""Plot the pages of bench/results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from bench.engines import OURS
from bench.pages import Page, is_ours
from bench.report import TASKS
from storyllamas.plots import COLORS, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = {"f32": "o", "q8": "s", "q8_0": "s", "int8": "s", "q4": "^", "q4_0": "^", "int4": "^"}
WEIGHTS = "q8"
"""Weights of StoryLlamas with which machines are compared."""


def draw_machine(page: Page, path: Path) -> None:
    """Plot one sequence's tokens a second on a machine, each engine with its fastest threads."""
    programs = list(dict.fromkeys(engine for engine, _ in page.engines()))
    colors = dict(zip(programs, cycle((*COLORS, "black")), strict=False))
    with drawing(path, size=(9, 6)) as (figure, (axes,)):
        for engine, weights in page.engines():
            speeds = [page.best("story", engine, weights, size) for size in page.sizes]
            marker = MARKERS.get(weights.partition(",")[0], "x")
            axes.plot(
                page.sizes,
                [speed or math.nan for speed in speeds],
                color=colors[engine],
                marker=marker,
                linewidth=2.2 if is_ours(engine) else 1,
                label=f"{engine} {weights}",
            )
            limits = [page.limit(weights, size) for size in page.sizes]
            if is_ours(engine) and all(limits):
                label = f"limit {weights}"
                axes.plot(page.sizes, limits, color="0.6", marker=marker, ls=":", label=label)
        axes.set(title=f"One sequence: tokens a second and the limit of the memory\n{page.title}")
        _format(axes)
        figure.legend(loc="outside right upper", fontsize="small")


def draw_machines(pages: Sequence[Page], path: Path) -> None:
    """Plot the tokens a second of StoryLlamas on each machine, one panel for each task."""
    with drawing(path, columns=len(TASKS), size=(12, 5)) as (figure, panels):
        for (task, title), axes in zip(TASKS.items(), panels, strict=True):
            for number, page in enumerate(pages):
                speeds = [page.best(task, OURS, WEIGHTS, size) for size in page.sizes]
                axes.plot(
                    page.sizes,
                    [speed or math.nan for speed in speeds],
                    color=COLORS[number % len(COLORS)],
                    marker="o",
                    label=page.title if axes is panels[0] else None,
                )
            axes.set(title=f"{title}, {WEIGHTS}")
            _format(axes)
        figure.legend(loc="outside lower center", fontsize="small")


def _format(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator

    axes.set(xlabel="model", ylabel="tokens a second (log scale)", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.25)
