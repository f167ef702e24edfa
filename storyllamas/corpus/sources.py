"""Training and validation stories from the corpus that params.yaml names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from storyllamas import workdir
from storyllamas.corpus import formats, storybook, tinystories
from storyllamas.corpus.files import ReadCounts
from storyllamas.errors import UserError
from storyllamas.params import Corpus


class Split(NamedTuple):
    """Training and validation stories, each of which can be read once, and counts while reading."""

    train: Iterator[str]
    valid: Iterator[str]
    counts: ReadCounts


def split(corpus: Corpus, seed: int) -> Split:
    """Open the corpus that `corpus.source` names.

    In a folder, or in its subfolder `data`, the training and validation files are those of
    `corpus.edition`, or train.txt and valid.txt in any format of `formats` and in any number of
    parts. If there is no such pair, all files of stories in the folder are read in the order of
    their names, and `corpus.valid_share` of the stories become the validation part. They are chosen
    by a hash of the story and the seed, so that equal stories are in the same part. A single file
    is split in the same way.

    Args:
        corpus: the section `corpus` of params.yaml.
        seed: selects the stories of the storybook, or the validation stories of other sources.

    Raises:
        UserError: the source does not exist, cannot be downloaded, or has too few stories; partly
            raised while reading.
    """
    if corpus.source == "storybook":
        return Split(*storybook.split(corpus.stories, corpus.valid_stories, seed), ReadCounts())
    if corpus.source == "tinystories":
        folder = workdir.root() / "downloads"
        train, valid = tinystories.download(corpus.edition, folder, corpus.mirror)
        return _pair([train], [valid])
    source = Path(corpus.source)
    if source.is_dir():
        pair = _find_pair(source, corpus.edition)
        return _pair(*pair) if pair else _hold_out(_story_files(source), corpus, seed)
    if source.exists():
        return _hold_out([source], corpus, seed)
    raise UserError(
        f"corpus.source is {corpus.source}, which does not exist: "
        "use storybook, tinystories, or the path of a folder or file of stories"
    )


def parts(path: Path, edition: str = "v1") -> dict[str, Iterator[str]]:
    """Open all stories of a file or folder by part: train and valid, or one part with its name.

    Args:
        path: the file or folder.
        edition: edition of TinyStories, if the folder has both.

    Raises:
        UserError: there are no stories; partly raised while reading.
    """
    if not path.is_dir():
        return {path.name: _read([path], ReadCounts())}
    pair = _find_pair(path, edition)
    if not pair:
        return {path.name: _read(_story_files(path), ReadCounts())}
    split = _pair(*pair)
    return {"train": split.train, "valid": split.valid}


def _pair(train: list[Path], valid: list[Path]) -> Split:
    counts = ReadCounts()
    return Split(_read(train, counts), _read(valid, counts), counts)


def _read(paths: list[Path], counts: ReadCounts) -> Iterator[str]:
    return chain.from_iterable(formats.read(path, counts) for path in paths)


def _find_pair(folder: Path, edition: str) -> tuple[list[Path], list[Path]] | None:
    names = [name.removesuffix(".txt") for name in tinystories.FILES[edition]]
    for place in (folder, folder / "data"):
        for train_name, valid_name in (names, ("train", "valid(?:ation)?")):
            train, valid = _parts(place, train_name), _parts(place, valid_name)
            if train and valid:
                return train, valid
    return None


def _parts(folder: Path, name: str) -> list[Path]:
    """Find a file by its name, or its parts, numbered as on Hugging Face; all of one format."""
    for suffix in formats.SUFFIXES:
        for pattern in (name, rf"{name}-\d+-of-\d+(?:-[0-9a-f]+)?"):
            pattern = pattern + re.escape(suffix)
            if paths := [path for path in _files(folder) if re.fullmatch(pattern, path.name)]:
                return paths
    return []


def _story_files(folder: Path) -> list[Path]:
    paths = [path for path in _files(folder) if path.name.lower().endswith(formats.SUFFIXES)]
    if not paths:
        raise UserError(
            f"{folder} has no file of stories: add one whose name ends in "
            f"{', '.join(formats.SUFFIXES)}"
        )
    return paths


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file())


def _hold_out(paths: list[Path], corpus: Corpus, seed: int) -> Split:
    key = seed.to_bytes(8, "little")
    threshold = int(corpus.valid_share * 2**64)

    def is_valid(story: str) -> bool:
        digest = hashlib.blake2b(story.encode(), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "little") < threshold

    def stories(part: str, keep: Callable[[str], bool], counts: ReadCounts) -> Iterator[str]:
        return _require_some(
            filter(keep, _read(paths, counts)),
            f"corpus.valid_share is {corpus.valid_share}, which leaves no {part} story of "
            f"{corpus.source}: add stories, or use another share",
        )

    counts = ReadCounts()
    return Split(
        stories("training", lambda story: not is_valid(story), counts),
        stories("validation", is_valid, ReadCounts()),
        counts,
    )


def _require_some(stories: Iterable[str], message: str) -> Iterator[str]:
    """Yield the stories; raise a `UserError` with the given message if there are none."""
    empty = True
    for story in stories:
        empty = False
        yield story
    if empty:
        raise UserError(message)
