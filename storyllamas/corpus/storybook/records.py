"""Records of the storybook: stories with a prompt as in TinyStories-Instruct.

A prompt names up to three words of the story. `Dialogue` says that it has direct speech, in half
of the prompts where that is true. `BadEnding` says that it ends badly. The storybook's own plots
end well, so that one story in four gets another end here.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator

from storyllamas.corpus.storybook import (
    MAX_CHARACTERS,
    MIN_CHARACTERS,
    PLOTS,
    render,
    split_candidates,
)
from storyllamas.corpus.storybook.grammar import Grammar, RenderContext, polish
from storyllamas.instruct import BAD_ENDING, DIALOGUE, Record, prompt

_SAD_INTERVAL = 4
_COUNTS = (0, 1, 2, 3, 3, 3, 3, 3)
"""Numbers of words in a prompt, with equal probability."""
_MIN_LETTERS = 3

_SAD_END = Grammar({}).compile(
    "[But it was too late.|But nothing helped.|But it all went wrong.|But nobody came to help.] "
    "[{hero} sat down and cried.|{hero} felt very sad and alone.|{hero} began to cry.] "
    '["I should have listened," {he} said, but no one heard {him}. '
    '|"Now it is gone forever," {he} said. |"Why did this happen to me?" {he} asked. |] '
    "[It was the saddest day of all.|From that day on, {hero} was never happy again."
    "|{He} went home all alone, and {he} did not sleep that night."
    "|It could never be made good again.]"
)

_COMMON = frozenset(
    """
    about after again all along also always and another any are around asked away back because been
    before began behind being both but came can come could day did does doing down each else even
    ever every for from get gets got had has have hear her here hers herself him himself his how
    into its itself just knew know like little long look looked made make many may maybe more most
    much must named never next not nothing now off old once one only onto other our out over own place
    put ran said same sat saw say see set she should some something soon still stood such take than
    that the their them then there these they thing things this those time told too took tried two
    under until upon very want wanted was way well went were what when where which while who whose
    why will with would yes yet you your
    """.split()
)
"""Words that say little about a story, so that no prompt names them."""


def record(seed: int, index: int) -> Record:
    """Return candidate number `index` (from 0) of `seed` (from 0), of any length."""
    context = RenderContext(random.Random((seed << 40) + index))
    story = render(PLOTS[context.below(len(PLOTS))], context)
    is_sad = context.below(_SAD_INTERVAL) == 0
    if is_sad:
        beginning, _, _ = story.rpartition("\n")
        story = f"{beginning}\n{polish(_SAD_END.text(context))}"
    features = [DIALOGUE] if '"' in story and context.below(2) else []
    return Record(prompt(_words(story, context), [*features, BAD_ENDING * is_sad]), story)


def split(train: int, valid: int, seed: int) -> tuple[Iterator[str], Iterator[str]]:
    """Return the texts of training and validation records, all different.

    Args:
        train: number of training records.
        valid: number of validation records.
        seed: 0 or more.
    """
    return split_candidates(lambda: _candidates(seed), train, valid)


def _candidates(seed: int) -> Iterator[str]:
    records = (record(seed, index) for index in itertools.count())
    return (
        each.text
        for each in records
        if len(each.response) >= MIN_CHARACTERS and len(each.text) <= MAX_CHARACTERS
    )


def _words(story: str, context: RenderContext) -> list[str]:
    """Draw up to three different words of a story, but no names and no common words."""
    names = {word.lower() for word in re.findall(r"[^.!?\"\n] ([A-Z][a-z]+)", story)}
    found = dict.fromkeys(re.findall(r"(?<![\w'’-])[a-z]+(?![\w'’-])", story))
    left = [
        word
        for word in found
        if len(word) >= _MIN_LETTERS and word not in _COMMON and word not in names
    ]
    count = min(_COUNTS[context.below(len(_COUNTS))], len(left))
    return [left.pop(context.below(len(left))) for _ in range(count)]
