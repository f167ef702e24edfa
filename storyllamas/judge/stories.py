"""Stories to judge, and pairs of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from storyllamas import jsonl
from storyllamas.errors import UserError
from storyllamas.judge.questions import Story


def read(path: Path, count: int | None) -> list[Story]:
    """Read the first `count` stories of a file that `storyllamas generate` wrote; None: all.

    Raises:
        UserError: the file has no stories, or a line is not a story.
    """
    stories = [Story(*each) for each in islice(jsonl.read_stories(path), count)]
    if not stories:
        raise UserError(f"{path} has no stories: write some with `storyllamas generate --out`")
    return stories


def pairs(first: Sequence[Story], second: Sequence[Story]) -> list[tuple[Story, Story]]:
    """Pair the stories of two models that complete the same prompt.

    The n-th story of a prompt in `first` is paired with the n-th one of this prompt in `second`.
    Stories without a partner are left out.
    """
    partners = dict(_numbered(second))
    return [(story, partners[key]) for key, story in _numbered(first) if key in partners]


def _numbered(stories: Sequence[Story]) -> Iterator[tuple[tuple[str, int], Story]]:
    """Yield each story with its prompt and its number among the stories of this prompt."""
    seen: dict[str, int] = {}
    for story in stories:
        number = seen.get(story.prompt, 0)
        seen[story.prompt] = number + 1
        yield (story.prompt, number), story
