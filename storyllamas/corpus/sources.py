"""Training and validation stories from the corpus that params.yaml names."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from storyllamas import workdir
from storyllamas.corpus import formats, storybook, tinystories
from storyllamas.corpus.files import SEPARATOR, ReadCounts
from storyllamas.corpus.separators import AUTO
from storyllamas.corpus.storybook import records as storybook_records
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
    kind = corpus.kind
    if corpus.source == "storybook":
        split = storybook.split if kind == formats.STORIES else storybook_records.split
        return Split(*split(corpus.stories, corpus.valid_stories, seed), ReadCounts())
    if corpus.source == "tinystories":
        _check_has_no_prompts(kind)
        folder = workdir.root() / "downloads"
        train, valid = tinystories.download(corpus.edition, folder, corpus.mirror)
        return _pair([train], [valid], AUTO)
    source = expand_home(corpus.source)
    if source.is_dir():
        pair = _find_pair(source, corpus.edition, kind)
        return (
            _pair(*pair, corpus.separator, kind)
            if pair
            else _hold_out(_story_files(source), corpus, seed)
        )
    if source.exists():
        return _hold_out([source], corpus, seed)
    raise UserError(
        f"corpus.source is {corpus.source}, which does not exist: "
        "use storybook, tinystories, or the path of a folder or file of stories"
    )


def parts(path: Path, edition: str = "v1", separator: str = AUTO) -> dict[str, Iterator[str]]:
    """Open all stories of a file or folder by part: train and valid, or one part with its name.

    Args:
        path: the file or folder; ~ is your home folder.
        edition: edition of TinyStories, if the folder has both.
        separator: as `corpus.separator`.

    Raises:
        UserError: there are no stories; partly raised while reading.
    """
    path = expand_home(path)
    pair = _find_pair(path, edition) if path.is_dir() else None
    if pair:
        split = _pair(*pair, separator)
        return {"train": split.train, "valid": split.valid}
    paths = _story_files(path) if path.is_dir() else [path]
    return {path.name: _read(_separated(paths, separator), ReadCounts())}


def expand_home(path: str | Path) -> Path:
    """Replace ~ at the start of a path by the home folder.

    Raises:
        UserError: there is no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{path} begins with ~, but there is no home folder: give the path without ~"
        ) from None


def _check_has_no_prompts(kind: str) -> None:
    if kind != formats.STORIES:
        raise UserError(
            "corpus.source is tinystories, whose stories have no prompts: with corpus.kind="
            "instruct, use storybook, or a folder with the files of TinyStories-Instruct "
            f"({' and '.join(tinystories.INSTRUCT_FILES)})"
        )


def _pair(
    train: list[Path], valid: list[Path], separator: str, kind: str = formats.STORIES
) -> Split:
    counts = ReadCounts()
    train_files = [file for path in train for file in _separated([path], separator, kind)]
    valid_files = [file for path in valid for file in _separated([path], separator, kind)]
    return Split(_read(train_files, counts, kind), _read(valid_files, counts, kind), counts)


def _read(
    separated: list[tuple[Path, str]], counts: ReadCounts, kind: str = formats.STORIES
) -> Iterator[str]:
    return chain.from_iterable(
        formats.read(path, counts, separator, kind) for path, separator in separated
    )


def _separated(
    paths: list[Path], separator: str, kind: str = formats.STORIES
) -> list[tuple[Path, str]]:
    """Return each file with its separator, and print a guess to stderr.

    A single text file without a separator is split by its layout; one of several files is one
    story.
    """
    if separator != AUTO or kind != formats.STORIES:  # records may have blank lines
        return [(path, separator) for path in paths]
    default = SEPARATOR.decode()
    if len(paths) == 1:
        layout = formats.layout(paths[0])
        if layout and (message := layout.message(paths[0])):
            print(message, file=sys.stderr, flush=True)
        return [(paths[0], layout.guess() if layout else default)]
    layouts = [formats.layout(path) for path in paths]
    if without := sum(layout is not None and not layout.has_separator for layout in layouts):
        print(
            f"{without:,} files in {paths[0].parent} have no {default}: each is read as one story; "
            "set corpus.separator if that is wrong",
            file=sys.stderr,
            flush=True,
        )
    return [(path, default) for path in paths]


def _find_pair(
    folder: Path, edition: str, kind: str = formats.STORIES
) -> tuple[list[Path], list[Path]] | None:
    files = tinystories.FILES[edition] if kind == formats.STORIES else tinystories.INSTRUCT_FILES
    names = [name.removesuffix(".txt") for name in files]
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
    for suffixes in (formats.SUFFIXES, formats.TABLE_SUFFIXES):
        if paths := [path for path in _files(folder) if path.name.lower().endswith(suffixes)]:
            return paths
    raise UserError(
        f"{folder} has no file of stories: add one whose name ends in "
        f"{', '.join(formats.SUFFIXES + formats.TABLE_SUFFIXES)}"
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file())


def _hold_out(paths: list[Path], corpus: Corpus, seed: int) -> Split:
    """Split stories by a hash; as soon as two stories differ, each part has at least one."""
    key = seed.to_bytes(8, "little")
    files = _separated(paths, corpus.separator, corpus.kind)

    def digest(story: str) -> int:
        digest = hashlib.blake2b(story.encode(), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "little")

    @functools.cache
    def threshold() -> int:
        share = int(corpus.valid_share * 2**64)
        return _between(map(digest, _read(files, ReadCounts(), corpus.kind)), share, corpus.source)

    def stories(keep: Callable[[int], bool], counts: ReadCounts) -> Iterator[str]:
        return (story for story in _read(files, counts, corpus.kind) if keep(digest(story)))

    counts = ReadCounts()
    return Split(
        stories(lambda value: value >= threshold(), counts),
        stories(lambda value: value < threshold(), ReadCounts()),
        counts,
    )


def _between(values: Iterable[int], threshold: int, source: str) -> int:
    """Return the threshold nearest to the given one with a value on both sides.

    Raises:
        UserError: all values are equal.
    """
    low, high = 1 << 64, -1
    for value in values:
        low, high = min(low, value), max(high, value)
        if low < threshold <= high:
            return threshold
    if low == high:
        raise UserError(
            f"{source} has only one story: training and validation need one each; add stories, or "
            "set corpus.separator to what separates them"
        )
    return min(max(threshold, low + 1), high)
