"""Colors and figures that all plots share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import matplotlib as mpl

from storyllamas.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@contextmanager
def drawing(
    target: str | os.PathLike[str], columns: int = 1, size: tuple[float, float] = (8, 5)
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure, `size` in inches, and its axes; write it as a PNG on success."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    # A dollar sign in a story is not a formula.
    with mpl.rc_context({"text.parse_math": False}):
        figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)
        try:
            yield figure, list(axes[0])
            with atomic_file(target) as file:
                figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
        finally:
            plt.close(figure)
