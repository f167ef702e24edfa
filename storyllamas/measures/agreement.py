"""Rank correlation of the measures with a person's scores of completions.

    python -m storyllamas.measures.agreement manual-scores.csv

The file is CSV with the columns `category`, `prompt`, `completion`, `model_name` and, for each
criterion of a category, `CATEGORY_CRITERION_score`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from storyllamas.argument_types import named_path
from storyllamas.corpus import files
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.measures.story import Story
from storyllamas.measures.summary import MEASURES, PerStory, copying
from storyllamas.measures.words import words

COLUMNS = ("category", "prompt", "completion", "model_name")

LOWEST_CORRELATION = 0.4
"""The lowest absolute correlation that counts.

By chance, one of the about hundred correlations of a table exceeds it in one table of twenty, with
75 completions for each category.
"""

_EOS = "<|endoftext|>"


@dataclass(frozen=True)
class Scored:
    """A completion and its score.

    Attributes:
        story: the completion, up to EOS.
        category: what the person judged.
        model: the name of the model that wrote it.
        score: mean of the person's scores for the criteria of the category.
    """

    story: Story
    category: str
    model: str
    score: float


def read(path: Path) -> list[Scored]:
    """Read completions and their scores; completions without a score are skipped.

    Raises:
        UserError: the file is missing, or has no such columns or scores.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a CSV file of scores") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not CSV in UTF-8 ({error}): name a file of scores") from None
    if missing := [name for name in COLUMNS if rows and name not in rows[0]]:
        raise UserError(f"{path} has no column {missing[0]}: name a file of scores")
    found = [scored for row in rows if (scored := _scored(path, row))]
    if not found:
        raise UserError(f"{path} has no scores: name a file of scores")
    return found


def _scored(path: Path, row: dict[str, str]) -> Scored | None:
    prefix, suffix = f"{row['category']}_", "_score"
    texts = [
        row[name] for name in row if name and name.startswith(prefix) and name.endswith(suffix)
    ]
    try:
        scores = [float(text) for text in texts if text]
    except ValueError as error:
        raise UserError(f"{path} has a score that is not a number ({error}): correct it") from None
    if not scores:
        return None
    completion, eos, _ = row["completion"].partition(_EOS)
    story = Story(row["prompt"], completion, "eos" if eos else "max_tokens")
    return Scored(story, row["category"], row["model_name"], fmean(scores))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation, -1 … 1; NaN if all values of one side are equal."""
    a, b = _centred_ranks(first), _centred_ranks(second)
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else float("nan")


def _centred_ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return ranks minus their mean; equal values share the mean of their ranks."""
    _, places, counts = np.unique(np.array(values), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    centred: npt.NDArray[np.float64] = ranks[places] - (len(values) + 1) / 2
    return centred


def correlations(
    scored: Sequence[Scored], values: dict[str, list[float]]
) -> dict[str, dict[str, float]]:
    """Return the correlation of each measure with the score, by measure and category."""
    members: dict[str, list[int]] = {}
    for index, each in enumerate(scored):
        members.setdefault(each.category, []).append(index)
    return {
        name: {
            category: spearman([column[i] for i in inside], [scored[i].score for i in inside])
            for category, inside in members.items()
        }
        for name, column in values.items()
    }


def measure(
    scored: Sequence[Scored], training: Path | None = None
) -> tuple[dict[str, list[float]], list[str]]:
    """Measure each completion.

    Args:
        scored: the completions.
        training: a file of training stories; None leaves the measures of memorization out.

    Returns:
        The values of each measure in the order of the completions, and a sentence for each measure
        that is left out. The number of words is there for comparison.
    """
    stories = [each.story for each in scored]
    values: dict[str, list[float]] = {}
    notes = []
    for measures in MEASURES.values():
        for name, function in measures.items():
            try:
                values[name] = _by_group(scored, function)
            except UserError as error:
                notes.append(f"{name} is left out: {error}")
    if training:
        values |= copying(stories, files.read_bytes(training))
    values["words"] = [len(words(story.completion)) for story in stories]
    return values, notes


def _by_group(scored: Sequence[Scored], function: PerStory) -> list[float]:
    """Apply a function to the stories of each model in each category.

    BLEU compares the stories that a function gets, and a prompt may be in several categories.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, each in enumerate(scored):
        groups.setdefault((each.model, each.category), []).append(index)
    values = [0.0] * len(scored)
    for inside in groups.values():
        measured = function([scored[i].story for i in inside])
        for i, value in zip(inside, measured, strict=True):
            values[i] = float(value)
    return values


def table(found: dict[str, dict[str, float]]) -> str:
    """Format correlations in Markdown, the strongest measure first; those that hold are bold."""
    categories = list(next(iter(found.values())))

    def strength(name: str) -> float:
        return float(np.nanmax([0.0, *map(abs, found[name].values())]))

    lines = [f"| measure | {' | '.join(categories)} |", "|---" * (len(categories) + 1) + "|"]
    for name in sorted(found, key=strength, reverse=True):
        cells = [_cell(found[name][category]) for category in categories]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float) -> str:
    if np.isnan(value):
        return "–"
    text = f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # 0.0 makes -0.0 positive
    return f"**{text}**" if abs(value) >= LOWEST_CORRELATION else text


@exit_on_user_error
def main() -> None:
    """Print the table of a file of scores."""
    parser = argparse.ArgumentParser(
        prog="python -m storyllamas.measures.agreement",
        description="Print the rank correlation of each measure with a person's scores.",
    )
    parser.add_argument("scores", type=named_path, help="a CSV file of completions and scores")
    parser.add_argument(
        "--train", type=named_path, help="training stories, for the memorization measures"
    )
    parser.add_argument("--model", help="only the completions of this model")
    options = parser.parse_args()
    scored = read(options.scores)
    if options.model:
        names = sorted({each.model for each in scored})
        if options.model not in names:
            raise UserError(
                f"{options.scores} has no model {options.model}: use one of {', '.join(names)}"
            )
        scored = [each for each in scored if each.model == options.model]
    values, notes = measure(scored, options.train)
    print(table(correlations(scored, values)))
    for note in notes:
        print(note)


if __name__ == "__main__":
    main()
