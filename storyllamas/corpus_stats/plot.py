"""Statistics of a corpus as a picture."""

from __future__ import annotations

import os
import sys

from storyllamas import plots
from storyllamas.corpus_stats import fonts
from storyllamas.corpus_stats.stats import CorpusStats

_LABEL_CHARACTERS = 40


def draw(found: CorpusStats, target: str | os.PathLike[str]) -> None:
    """Draw the lengths, words and beginnings of the first part as a PNG file."""
    name, part = next(iter(found.parts.items()))
    labels = [text for text, _ in part.frequent_words + part.beginnings]
    family, missing = fonts.families([name, *labels])
    if missing:
        print(
            f"no installed font has {len(missing):,} of the characters in {target}: it shows their "
            "code points",
            file=sys.stderr,
        )
    with plots.drawing(target, 3, (12, 4.2)) as (figure, (lengths, words, beginnings)):
        figure.suptitle(
            f"{fonts.spelled(name, missing)}: {part.stories:,} stories, "
            f"{part.text_bytes / 1e6:,.1f} MB, "
            f"{part.words:,} words, {part.distinct_words:,} different words",
            fontfamily=family,
        )
        bins = part.words_of_stories.histogram
        starts = [first for first, *_ in bins]
        starts[0] = 2 * starts[1] - starts[2]
        width = starts[1] - starts[0]
        shares = [100 * count / part.stories for *_, count in bins]
        lengths.bar(starts, shares, width, align="edge", color=plots.COLORS[0], edgecolor="white")
        median = part.words_of_stories.quantiles["0.5"]
        lengths.axvline(median, color=plots.COLORS[1], label=f"median {median:,}")
        lengths.set(title="Length", xlabel="words per story", ylabel="% of the stories")
        lengths.legend()
        for axes, title, rows, total, color in (
            (words, "Most frequent words", part.frequent_words, part.words, 2),
            (beginnings, "How stories begin", part.beginnings, part.stories, 3),
        ):
            texts = [_shortened(fonts.spelled(text, missing)) for text, _ in rows][::-1]
            values = [100 * count / total for _, count in rows][::-1]
            axes.barh(range(len(rows)), values, color=plots.COLORS[color])
            axes.set_yticks(range(len(rows)), texts, fontsize=8, fontfamily=family)
            axes.set(title=title, xlabel=f"% of the {'words' if axes is words else 'stories'}")


def _shortened(label: str) -> str:
    """Cut a label that would leave no room for the bars."""
    return label if len(label) <= _LABEL_CHARACTERS else f"{label[: _LABEL_CHARACTERS - 1]}…"
