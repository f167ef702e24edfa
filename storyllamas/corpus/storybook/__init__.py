"""The bundled storybook: children's stories in the style of TinyStories, generated from a seed.

A story renders a plot (`plots/*.txt`) in the template language of `grammar.py`, with a cast that
`cast.py` draws from `words/*.txt`. A plot has only a few casts, the same for every seed, and many
wordings. In minutes of training, a small model can learn which names belong together, but not yet
to copy any name from any sentence. A story depends on the seed and its number only.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator

from storyllamas.corpus.fingerprints import Fingerprints, fingerprint
from storyllamas.corpus.storybook.cast import draw_cast
from storyllamas.corpus.storybook.grammar import Grammar, RenderContext, polish
from storyllamas.corpus.storybook.plot import Plot, blocks, plots, read, table

_GRAMMAR = Grammar({block.key: block.rows for block in blocks(read("phrases"))})
_TABLES = {block.key: table(_GRAMMAR, block) for block in blocks(read("words"))}
PLOTS = tuple(plots(_GRAMMAR, read("plots")))

# A story fits into a context of 256 tokens and has room for a plot.
MIN_CHARACTERS, MAX_CHARACTERS = 400, 960

# Casts of each plot.
_CASTS = 4

# One in this many candidates belongs to the validation part.
VALID_INTERVAL = 8


def story(seed: int, index: int) -> str:
    """Return candidate number `index` (from 0) of `seed` (from 0), of any length."""
    context = RenderContext(random.Random((seed << 40) + index))
    return render(PLOTS[context.below(len(PLOTS))], context)


def render(plot: Plot, context: RenderContext) -> str:
    """Render a plot with one of its casts."""
    number = context.below(_CASTS)
    casting = RenderContext(random.Random(fingerprint(f"{plot.name} {number}")), context.slots)
    draw_cast(casting, plot.cast, _TABLES)
    return polish(plot.text.text(context))


def stories(count: int, seed: int) -> Iterator[str]:
    """Return `count` different stories; a larger count only adds stories at the end."""
    return itertools.islice(distinct(_candidates(seed)), count)


def split(train: int, valid: int, seed: int) -> tuple[Iterator[str], Iterator[str]]:
    """Return training and validation stories, all different.

    Args:
        train: number of training stories.
        valid: number of validation stories.
        seed: 0 or more.
    """
    return split_candidates(lambda: _candidates(seed), train, valid)


def split_candidates(
    candidates: Callable[[], Iterator[str]], train: int, valid: int
) -> tuple[Iterator[str], Iterator[str]]:
    """Return training and validation texts, all different.

    The part of a text follows from a digest of it, so that each part can be streamed without the
    other.

    Args:
        candidates: returns an iterator of the texts, always the same ones.
        train: number of training texts.
        valid: number of validation texts.
    """

    def part(belongs: Callable[[str], bool], count: int) -> Iterator[str]:
        return itertools.islice(distinct(filter(belongs, candidates())), count)

    return (
        part(lambda text: fingerprint(text) % VALID_INTERVAL != 0, train),
        part(lambda text: fingerprint(text) % VALID_INTERVAL == 0, valid),
    )


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Yield each text the first time it occurs."""
    seen = Fingerprints()
    return (text for text in texts if seen.add(fingerprint(text)))


def _candidates(seed: int) -> Iterator[str]:
    texts = (story(seed, index) for index in itertools.count())
    return (text for text in texts if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS)
