"""Plot tokens a second by size and engine."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from bench.engines import OURS
from bench.report import Results
from storyllamas.atomic import atomic_file
from storyllamas.plots import COLORS

MARKERS = {32: "o", 8: "s", 4: "^"}


def draw(results: Results, path: Path) -> None:
    """Plot tokens a second of one sequence, each engine with its faster number of threads."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    programs = list(dict.fromkeys(engine.name for engine in results.engines))
    colors = dict(zip(programs, COLORS, strict=False))
    for engine in results.engines:
        if engine.missing:
            continue
        speeds = [results.best(size, engine, "story") for size in results.models]
        is_ours = engine.name == OURS
        axes.plot(
            list(results.models),
            speeds,
            color=colors[engine.name],
            marker=MARKERS[engine.bits],
            linewidth=2.2 if is_ours else 1,
            label=engine.label,
        )
        if is_ours:
            threads = max(engine.threads)
            limits = [
                results.limit(size, engine.weights, threads, "story") for size in results.models
            ]
            axes.plot(
                list(results.models),
                limits,
                color="0.6",
                marker=MARKERS[engine.bits],
                linestyle=":",
                label=f"limit {engine.weights}",
            )
    axes.set(
        title="One sequence: tokens a second and the limit of the memory",
        xlabel="model",
        ylabel="tokens a second (log scale)",
        yscale="log",
    )
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize="small")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    plt.close(figure)
