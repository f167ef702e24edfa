"""The bundled storybook: children's stories in the manner of TinyStories, told from a seed.

A story is a plot (`plots/*.txt`) told by the template language of `grammar.py` with a cast that
`cast.py` draws from `words/*.txt`. A plot has a few casts, the same for every seed, and many ways
to be told: a small model that reads for minutes learns who belongs together, where it could not
yet learn to copy any name from any sentence. Nothing but the seed and the story's number decides
what a story says.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator

from storyllamas.corpus.fingerprints import Fingerprints, fingerprint
from storyllamas.corpus.storybook.cast import draw_cast
from storyllamas.corpus.storybook.grammar import Grammar, Teller, polish
from storyllamas.corpus.storybook.plot import Plot, blocks, plots, read, table

_GRAMMAR = Grammar({block.key: block.rows for block in blocks(read("phrases"))})
_TABLES = {block.key: table(_GRAMMAR, block) for block in blocks(read("words"))}
PLOTS = tuple(plots(_GRAMMAR, read("plots")))

# A story that a context of 256 tokens holds whole, and that has room for a plot.
SHORTEST, LONGEST = 400, 960

# Casts that a plot has.
_CASTS = 4

# One candidate in this many belongs to the validation split.
_VALID_SHARE = 8


def story(seed: int, index: int) -> str:
    """The candidate numbered `index` (from 0) of `seed` (0 or more), of any length."""
    teller = Teller(random.Random((seed << 40) + index))
    return tell(PLOTS[teller.below(len(PLOTS))], teller)


def tell(plot: Plot, teller: Teller) -> str:
    """A story of the given plot, with one of its casts."""
    number = teller.below(_CASTS)
    casting = Teller(random.Random(fingerprint(f"{plot.name} {number}")), teller.slots)
    draw_cast(casting, plot.cast, _TABLES)
    return polish(plot.text.text(teller))


def stories(count: int, seed: int) -> Iterator[str]:
    """`count` different stories; the first ones do not depend on how many are asked for."""
    return itertools.islice(distinct(_candidates(seed)), count)


def split(train: int, valid: int, seed: int) -> tuple[Iterator[str], Iterator[str]]:
    """`train` and `valid` different stories, none of them in both.

    A digest of its text decides which side a story belongs to, so that either side can be
    streamed without the other.
    """

    def side(belongs: Callable[[str], bool], count: int) -> Iterator[str]:
        return itertools.islice(distinct(filter(belongs, _candidates(seed))), count)

    return (
        side(lambda text: fingerprint(text) % _VALID_SHARE != 0, train),
        side(lambda text: fingerprint(text) % _VALID_SHARE == 0, valid),
    )


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """The texts without those that came before."""
    seen = Fingerprints()
    return (text for text in texts if seen.add(fingerprint(text)))


def _candidates(seed: int) -> Iterator[str]:
    told = (story(seed, index) for index in itertools.count())
    return (text for text in told if SHORTEST <= len(text) <= LONGEST)
