"""The questions that a judge is asked.

The grading follows the paper of TinyStories (Eldan & Li 2023, arXiv:2305.07759): the judge sees the
beginning and the completion with *** between them, writes an assessment, and then grades. Other
than in the paper, which asks twice, one answer has both, and the grades are a JSON object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from storyllamas.judge.grades import AGE_GROUPS, Grades, read_grades, read_preference

T = TypeVar("T")


@dataclass(frozen=True)
class Story:
    """A generated story.

    Attributes:
        prompt: its beginning, which was given; may be empty.
        completion: what a model generated.
    """

    prompt: str
    completion: str


@dataclass(frozen=True)
class Question(Generic[T]):
    """A question.

    Attributes:
        text: what the judge reads.
        seed: of its answer.
        read: returns what the answer says; raises `MalformedError`.
    """

    text: str
    seed: int
    read: Callable[[str], T]


_EXERCISE = """\
In the following exercise, a student is given the beginning of a story and completes it into a \
full story. The exercise tests the student's language abilities and creativity. The symbol *** \
marks the separator between the given beginning and the student's completion. """

_GRADING = (
    _EXERCISE
    + """The beginning may be empty.

<story>
{prompt} *** {completion}
</story>

First, assess in a few sentences the part that the student wrote, which is the part after the \
symbol ***. Is it grammatically correct? Is it consistent with the beginning of the story? Does \
the plot make sense? Pay special attention to whether the student completes the sentence that the \
separator *** splits in the middle.

Then grade the student's completion for its grammar, its creativity, its consistency with the \
beginning of the story, and whether its plot makes sense, each from 0 to 10. Also guess the \
student's age from the completion. The age groups are {ages}.

End your answer with one JSON object of this form, with your numbers and your letter:
{{"grammar": 0, "creativity": 0, "consistency": 0, "plot": 0, "age_group": "A"}}
"""
)

_COMPARISON = (
    _EXERCISE
    + """Two students got the same beginning, which may be empty.

<story number="1">
{prompt} *** {first}
</story>

<story number="2">
{prompt} *** {second}
</story>

First, compare in a few sentences the parts that the students wrote, which are the parts after the \
symbol ***: their grammar, their creativity, their consistency with the beginning, and whether \
their plots make sense. The order of the stories means nothing, and a longer story is not better \
because it is longer.

Then decide which is the better completion. End your answer with one JSON object of this form, \
where the number is 1 or 2, or 0 if both are equally good:
{{"better": 0}}
"""
)


def grading(story: Story, seed: int) -> Question[Grades]:
    """Return the question for the grades of a story."""
    ages = ", ".join(f"{letter}: {years}" for letter, years in AGE_GROUPS.items())
    text = _GRADING.format(prompt=story.prompt, completion=story.completion, ages=ages)
    return Question(text, seed, read_grades)


def comparison(first: Story, second: Story, seed: int) -> Question[int]:
    """Return the question which of two completions of the same prompt is better."""
    text = _COMPARISON.format(prompt=first.prompt, first=first.completion, second=second.completion)
    return Question(text, seed, read_preference)
