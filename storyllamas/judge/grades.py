"""The grades and preferences in a judge's answers.

An answer may be text, in which the last JSON object with the expected keys counts, so that a judge
can think aloud, repeat the form, or put the object into a code fence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CATEGORIES = ("grammar", "creativity", "consistency", "plot")
"""What is graded from 0 to `MAX_GRADE`, as in Eldan & Li 2023, arXiv:2305.07759."""

MAX_GRADE = 10

AGE_GROUPS = {
    "A": "3 or under",
    "B": "4-5",
    "C": "6-7",
    "D": "8-9",
    "E": "10-12",
    "F": "13-16",
}
"""The paper's groups of the age of a child who could have written the text, in years."""

TIE = 0
"""The preference for neither of two completions; the others are 1 and 2."""

_MAX_CHARACTERS = 20_000
"""Only the end of a longer answer is read."""

_MAX_BRACES = 100
"""Only the last braces are tried: each may begin an object that goes on to the end."""


class MalformedError(ValueError):
    """An answer without what was asked for; the message is a phrase that says what is wrong."""


@dataclass(frozen=True)
class Grades:
    """Grades of a completion, each from 0 to `MAX_GRADE`, and a key of `AGE_GROUPS`."""

    grammar: float
    creativity: float
    consistency: float
    plot: float
    age_group: str


def read_grades(answer: str) -> Grades:
    """Return the grades in an answer.

    Raises:
        MalformedError: a grade is missing or out of its range, or there are none.
    """
    found = _last_object(answer, {*CATEGORIES, "age_group"})
    return Grades(
        **{name: _grade(name, found[name]) for name in CATEGORIES},
        age_group=_age_group(found["age_group"]),
    )


def read_preference(answer: str) -> int:
    """Return the number of the better of two completions, 1 or 2, or `TIE`.

    Raises:
        MalformedError: there is no preference, or it is another value.
    """
    value = _number(_last_object(answer, {"better"})["better"])
    if value not in (TIE, 1, 2):
        raise MalformedError(f"the better completion is {value!r}, not 0, 1 or 2")
    return int(value)


def _last_object(answer: str, keys: set[str]) -> dict[str, Any]:
    """Return the last JSON object that has all keys, with its keys in lower case."""
    best: set[str] = set()
    for found in _objects_from_the_end(answer[-_MAX_CHARACTERS:]):
        if keys <= found.keys():
            return found
        best = max(best, keys & found.keys(), key=len)
    if best:
        raise MalformedError(f"it has no {', '.join(sorted(keys - best))}")
    raise MalformedError("it has no JSON object with the grades")


def _objects_from_the_end(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    start = len(text)
    for _ in range(_MAX_BRACES):
        start = text.rfind("{", 0, start)
        if start < 0:
            return
        try:
            found, _ = decoder.raw_decode(text, start)
            yield {re.sub(r"[\s-]+", "_", key.strip().lower()): found[key] for key in found}
        except (ValueError, RecursionError):
            continue


def _grade(name: str, value: object) -> float:
    number = _number(value)
    if number is None or not 0 <= number <= MAX_GRADE:
        raise MalformedError(f"its {name} is {value!r}, not a number from 0 to {MAX_GRADE}")
    return number


def _number(value: object) -> float | None:
    """Return a number, also of a text such as "8/10"; None: it is none."""
    if isinstance(value, str) and (
        match := re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*(?:/\s*{MAX_GRADE})?\s*", value)
    ):
        return float(match[1])
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _age_group(value: object) -> str:
    """Return the letter of a text such as "C: 6-7"."""
    match = re.match(r"\s*([A-Fa-f])\b", value) if isinstance(value, str) else None
    if match is None:
        raise MalformedError(f"its age group is {value!r}, not a letter from A to F")
    return match[1].upper()
