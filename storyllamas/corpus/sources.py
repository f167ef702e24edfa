"""The corpus that params.yaml names, as training and validation stories."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from storyllamas import state
from storyllamas.corpus import files, storybook, tinystories
from storyllamas.corpus.files import Counts
from storyllamas.errors import UserError
from storyllamas.params import Corpus


class Split(NamedTuple):
    """Training and validation stories, to be read once, and what reading them met."""

    train: Iterator[str]
    valid: Iterator[str]
    counts: Counts


def split(corpus: Corpus, seed: int) -> Split:
    """Open the corpus that `corpus.source` names.

    A folder is searched for a training and a validation file, those of `corpus.edition` or
    train.txt and valid.txt. Where it has no such pair, all its .txt files are taken, in the order
    of their names, and `corpus.valid_share` of the stories are held out, chosen by a hash of the
    story and the seed, so that equal stories are on the same side. A single file is held out of in
    the same way.

    Raises:
        UserError: the source does not exist, cannot be downloaded, or has too few stories; some of
            it only while reading.
    """
    if corpus.source == "storybook":
        return Split(*storybook.split(corpus.stories, corpus.valid_stories, seed), Counts())
    if corpus.source == "tinystories":
        return _pair(*tinystories.download(corpus.edition, state.root() / "downloads"))
    source = Path(corpus.source)
    if source.is_dir():
        pair = _find_pair(source, corpus.edition)
        return _pair(*pair) if pair else _hold_out(_text_files(source), corpus, seed)
    if source.exists():
        return _hold_out([source], corpus, seed)
    raise UserError(
        f"corpus.source is {corpus.source}, which does not exist: "
        "use storybook, tinystories, or the path of a folder or file of stories"
    )


def parts(path: Path, edition: str = "v1") -> dict[str, Iterator[str]]:
    """The stories of a file or folder, nothing held out: training and validation, or all as one.

    Raises:
        UserError: there are no stories; some of it only while reading.
    """
    if not path.is_dir():
        return {path.name: files.read(path)}
    pair = _find_pair(path, edition)
    if not pair:
        return {path.name: chain.from_iterable(map(files.read, _text_files(path)))}
    split = _pair(*pair)
    return {"train": split.train, "valid": split.valid}


def _pair(train: Path, valid: Path) -> Split:
    counts = Counts()
    return Split(files.read(train, counts), files.read(valid, counts), counts)


def _find_pair(folder: Path, edition: str) -> tuple[Path, Path] | None:
    for train, valid in (tinystories.FILES[edition], ("train.txt", "valid.txt")):
        if (folder / train).is_file() and (folder / valid).is_file():
            return folder / train, folder / valid
    return None


def _text_files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.glob("*.txt") if path.is_file())
    if not paths:
        raise UserError(f"corpus.source is {folder}, which has no .txt file: put stories in one")
    return paths


def _hold_out(paths: list[Path], corpus: Corpus, seed: int) -> Split:
    key = seed.to_bytes(8, "little")
    threshold = int(corpus.valid_share * 2**64)

    def is_valid(story: str) -> bool:
        digest = hashlib.blake2b(story.encode(), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "little") < threshold

    def stories(part: str, keep: Callable[[str], bool], counts: Counts) -> Iterator[str]:
        kept = filter(keep, chain.from_iterable(files.read(path, counts) for path in paths))
        return _some(
            kept,
            f"corpus.valid_share is {corpus.valid_share}, which leaves no {part} story of "
            f"{corpus.source}: give more stories or another share",
        )

    counts = Counts()
    return Split(
        stories("training", lambda story: not is_valid(story), counts),
        stories("validation", is_valid, Counts()),
        counts,
    )


def _some(stories: Iterable[str], otherwise: str) -> Iterator[str]:
    """Pass stories on; a `UserError` if there were none."""
    empty = True
    for story in stories:
        empty = False
        yield story
    if empty:
        raise UserError(otherwise)
