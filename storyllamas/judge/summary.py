"""Summaries of grades and of comparisons."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from storyllamas.judge.grades import AGE_GROUPS, CATEGORIES, TIE, Grades


@dataclass(frozen=True)
class Mean:
    """A mean over stories or pairs.

    Attributes:
        mean: the mean.
        standard_error: of the mean; 0 for a single value.
    """

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Return the mean of at least one value."""
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), error)


@dataclass(frozen=True)
class GradesSummary:
    """Grades of stories.

    Attributes:
        stories: the number of stories with at least one answer.
        unanswered: questions without a usable answer.
        grammar: 0 … 10; the grade of a story is the mean of its repetitions.
        creativity: 0 … 10.
        consistency: with the prompt, 0 … 10.
        plot: 0 … 10.
        age_groups: share of the answers with each key of `AGE_GROUPS`.
    """

    stories: int
    unanswered: int
    grammar: Mean
    creativity: Mean
    consistency: Mean
    plot: Mean
    age_groups: dict[str, float]


def of_grades(answers: Sequence[Sequence[Grades | None]]) -> GradesSummary | None:
    """Summarize the grades of each repetition of each story; None if there is no grade."""
    answered = [[each for each in story if each] for story in answers]
    graded = [story for story in answered if story]
    if not graded:
        return None
    means = {
        name: Mean.of([statistics.fmean(getattr(each, name) for each in story) for story in graded])
        for name in CATEGORIES
    }
    ages = Counter(each.age_group for story in graded for each in story)
    return GradesSummary(
        stories=len(graded),
        unanswered=sum(map(len, answers)) - ages.total(),
        **means,
        age_groups={letter: ages[letter] / ages.total() for letter in AGE_GROUPS},
    )


@dataclass(frozen=True)
class ComparisonSummary:
    """Comparisons of two models' stories; each pair is shown in both orders.

    Attributes:
        pairs: the number of pairs with an answer in both orders.
        unanswered: comparisons that lack an answer.
        wins: share of the comparisons that the first model wins in both orders.
        losses: share that the second model wins in both orders.
        ties: share with a tie in both orders.
        order_dependent: share in which the other order gets another answer.
        win_rate: of the first model, 0 … 1: the mean over both orders, where a tie is a half.
    """

    pairs: int
    unanswered: int
    wins: float
    losses: float
    ties: float
    order_dependent: float
    win_rate: Mean


Preferences = tuple[int | None, int | None]
"""The preferences with the first model's story as number 1, and with it as number 2."""


def of_comparisons(answers: Sequence[Sequence[Preferences]]) -> ComparisonSummary | None:
    """Summarize each repetition of each pair; None if no pair has an answer in both orders."""
    answered = [[points for each in pair if (points := _both_points(each))] for pair in answers]
    compared = [pair for pair in answered if pair]
    if not compared:
        return None
    every = [points for pair in compared for points in pair]
    return ComparisonSummary(
        pairs=len(compared),
        unanswered=sum(map(len, answers)) - len(every),
        wins=every.count((1.0, 1.0)) / len(every),
        losses=every.count((0.0, 0.0)) / len(every),
        ties=every.count((0.5, 0.5)) / len(every),
        order_dependent=sum(one != two for one, two in every) / len(every),
        win_rate=Mean.of([statistics.fmean(map(statistics.fmean, pair)) for pair in compared]),
    )


def _both_points(preferences: Preferences) -> tuple[float, float] | None:
    """Return the points of the first model's story in both orders."""
    one, two = preferences
    if one is None or two is None:
        return None
    return _points(one, 1), _points(two, 2)


def _points(preference: int, number: int) -> float:
    """Return the points of the story with a number: 1 if it is better, ½ for a tie, else 0."""
    if preference == TIE:
        return 0.5
    return 1.0 if preference == number else 0.0
