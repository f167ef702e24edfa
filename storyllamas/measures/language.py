"""Language of generated stories: grammar, readability, and names that change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from storyllamas.extras import needs
from storyllamas.measures.story import Story

if TYPE_CHECKING:
    from harper import Linter

IGNORED_KINDS = frozenset(
    {
        *("Enhancement", "Readability", "Redundancy", "Regionalism", "Style"),  # matters of taste
        "Capitalization",  # takes names such as Sam for acronyms
        "Formatting",  # a quotation that the end of a story cuts
    }
)
"""Kinds of Harper's lints that are not counted."""

_LETTERS = re.compile(r"[^\W\d_]+")
_STARTS = ".!?…\"“”'‘’:\n"
"""Characters after which any word may begin with a capital."""

_NOT_NAMES = frozenset(
    "i mom mommy mum mummy mama dad daddy papa grandma grandpa god mr mrs miss ok okay christmas "
    "monday tuesday wednesday thursday friday saturday sunday".split()
)


def faults(stories: Sequence[Story]) -> list[int]:
    """Return the number of faults that Harper, a grammar checker, finds in each completion.

    The checker reads the prompt too, whose own faults are not counted.

    Raises:
        UserError: harper-py is not installed.
    """
    with needs("measures"):
        from harper import Language
    linter = _linter()
    return [
        sum(
            lint.span.start >= len(story.prompt) and lint.lint_kind not in IGNORED_KINDS
            for lint in linter.lint(story.prompt + story.completion, language=Language.PLAINTEXT)
        )
        for story in stories
    ]


@cache
def _linter() -> Linter:
    """Return a checker; its dictionary takes a second."""
    from harper import Linter

    return Linter()


def grade_levels(stories: Sequence[str]) -> list[float]:
    """Return the Flesch-Kincaid grade of each text: US school years that its reader needs.

    Raises:
        UserError: textstat is not installed.
    """
    with needs("measures"):
        import textstat
    return [float(textstat.flesch_kincaid_grade(story)) for story in stories]


def changes_names(story: Story) -> bool:
    """Return whether none of the names at the beginning comes back, but others come.

    The beginning is the prompt, or the first half of a story without a prompt. A name is a word
    with a capital letter within a sentence that the story never writes without one.
    """
    text = story.prompt + story.completion
    split = len(story.prompt) or len(text) // 2
    names = _names(text)
    before = {name for position, name in names if position < split}
    after = {name for position, name in names if position >= split}
    return bool(before) and bool(after) and not before & after


def _names(text: str) -> list[tuple[int, str]]:
    """Return the position and the text of each name."""
    found = [(match.start(), match.group()) for match in _LETTERS.finditer(text)]
    lower = {word for _, word in found if word[0].islower()} | _NOT_NAMES
    names = {
        word
        for position, word in found
        if word.istitle() and word.lower() not in lower and _is_within_sentence(text, position)
    }
    return [(position, word) for position, word in found if word in names]


def _is_within_sentence(text: str, position: int) -> bool:
    before = text[:position].rstrip(" ")
    return bool(before) and before[-1] not in _STARTS
