"""The charts, as Plotly draws them: figures in JSON, whose colors of text the page sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import log10
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from storyllamas.experiments.losses import Curve
from storyllamas.plots import COLORS
from storyllamas.report.runs import Run

PUBLISHED = {"2m": 1.81, "7m": 1.60, "30m": 1.41}
"""Final validation losses of the published recipe on TinyStories, in nats a token, by size."""

PUBLISHED_CORPUS = "tinystories"

MAX_POINTS = 400
"""Points of a curve; more are averaged, since a screen shows no more."""

LOG_AXIS = {
    "type": "log",
    "tickvals": [digit * 10.0**power for power in range(-3, 15) for digit in (1, 2, 5)],
}
"""A logarithmic axis with whole labels; Plotly's own leave out the zeros of 0.2 and 500."""

DASHES = {"solid": "", "dash": "6 3", "dot": "2 2", "dashdot": "6 2 2 2"}
"""Dashes of lines by Plotly's name: the pattern in SVG."""


@dataclass(frozen=True)
class Style:
    """How the charts draw a run.

    Attributes:
        color: in CSS's notation.
        dash: a key of `DASHES`.
    """

    color: str
    dash: str

    @property
    def pattern(self) -> str:
        """The dashes of a line in SVG."""
        return DASHES[self.dash]


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: identifies it on the page.
        title: what it shows.
        figure: Plotly's data and layout.
    """

    name: str
    title: str
    figure: Mapping[str, Any]


def script() -> str:
    """Return Plotly's JavaScript, which can stand in an HTML file."""
    source: str = get_plotlyjs()
    if "</script" in source.lower():
        raise AssertionError("this version of Plotly ends the HTML element that it stands in")
    return source


def styles(runs: Sequence[Run]) -> list[Style]:
    """Return a color and a dash for each run; they repeat after 24 runs."""
    kinds = [Style(color, dash) for dash, color in product(DASHES, COLORS)]
    return [kinds[index % len(kinds)] for index in range(len(runs))]


def losses(runs: Sequence[Run]) -> Chart:
    """Draw training and validation losses over tokens, and the published losses."""
    figure = go.Figure()
    for index, (run, style) in enumerate(zip(runs, styles(runs), strict=True)):
        line = {"color": style.color, "dash": style.dash}
        for name, curve, width, opacity in (
            ("training", thinned(run.train), 1, 0.45),
            ("validation", run.validation, 2.5, 1),
        ):
            x, y = curve
            is_point = len(x) == 1
            figure.add_scatter(
                x=x,
                y=y,
                name=f"{run.label}: {name}",
                meta=index,
                mode="markers" if is_point else "lines",
                line={**line, "width": width},
                marker={"color": style.color},
                opacity=opacity,
                hovertemplate="%{x:.3g} M tokens: %{y:.4g}<extra>%{fullData.name}</extra>",
            )
    for place, (size, loss) in zip((0.99, 0.9, 0.81), PUBLISHED.items(), strict=True):
        figure.add_hline(loss, line={"dash": "dash", "width": 1})
        figure.add_annotation(
            text=f"{size} {loss:.2f}", x=place, xref="paper", xanchor="right", y=log10(loss),
            showarrow=False, name="published",
        )  # fmt: skip
    figure.update_xaxes(title="million tokens", rangemode="tozero")
    figure.update_yaxes(title="nats a token (log scale)", **LOG_AXIS, tickformat="~g")
    return _chart("losses", "Loss over training tokens", figure)


def bits_per_byte(runs: Sequence[Run]) -> list[Chart]:
    """Draw the framed bits per byte against parameters, tokens and seconds."""
    return [
        chart
        for name, title in (
            ("parameters", "parameters"),
            ("tokens", "training tokens"),
            ("seconds", "seconds of training"),
        )
        if (chart := _bits_per_byte(runs, name, title))
    ]


def _bits_per_byte(runs: Sequence[Run], name: str, title: str) -> Chart | None:
    figure = go.Figure()
    for index, (run, style) in enumerate(zip(runs, styles(runs), strict=True)):
        x, y = run.metrics.get(name), run.metrics.get("framed_bits_per_byte")
        if x and y:
            figure.add_scatter(
                x=[x],
                y=[y],
                name=run.label,
                meta=index,
                mode="markers",
                marker={"color": style.color, "size": 11, "symbol": _symbol(style)},
                hovertemplate=f"%{{x:,}} {title}: %{{y:.4g}}<extra>%{{fullData.name}}</extra>",
            )
    if not figure.data:
        return None
    figure.update_xaxes(title=f"{title} (log scale)", **LOG_AXIS, tickformat="~s")
    figure.update_yaxes(title="bits per byte, framed", rangemode="tozero")
    return _chart(name, f"Bits per byte against {title}", figure)


def _symbol(style: Style) -> str:
    symbols = dict(zip(DASHES, ("circle", "square", "diamond", "triangle-up"), strict=True))
    return symbols[style.dash]


def _chart(name: str, title: str, figure: go.Figure) -> Chart:
    figure.update_layout(
        template={},
        showlegend=False,
        hovermode="closest",
        dragmode=False,
        margin={"l": 56, "r": 12, "t": 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    for axes in (figure.update_xaxes, figure.update_yaxes):
        axes(fixedrange=True, zeroline=False, automargin=True, title_font_size=13, title_standoff=8)
    return Chart(name, title, json.loads(figure.to_json()))


def thinned(curve: Curve) -> Curve:
    """Return a curve with at most `MAX_POINTS` points, each the mean of as many neighbours."""
    width = -(-len(curve[0]) // MAX_POINTS) or 1
    tokens, losses = (
        [_mean(axis[i : i + width]) for i in range(0, len(axis), width)] for axis in curve
    )
    return tokens, losses


def _mean(values: Sequence[float]) -> float:
    return float(f"{sum(values) / len(values):.6g}")
