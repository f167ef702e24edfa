"""TinyStories (Eldan and Li, 2023, https://arxiv.org/abs/2305.07759), from Hugging Face.

`HF_ENDPOINT` names a mirror that is laid out as the hub; `corpus.mirror` a folder, here or behind
a URL, that has the files themselves. The hub's cache on this machine is looked into first. From
wherever a file comes, it must be the published one, byte for byte.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

from storyllamas.corpus import transfer
from storyllamas.corpus.transfer import Patience, Published, TransferError
from storyllamas.errors import UserError

REPOSITORY = "roneneldan/TinyStories"
REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
FILES = {
    "v1": ("TinyStories-train.txt", "TinyStories-valid.txt"),
    "v2-gpt4": ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
}
PUBLISHED = {
    "TinyStories-train.txt": Published(
        1_924_281_556, "c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f"
    ),
    "TinyStories-valid.txt": Published(
        19_447_282, "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4"
    ),
    "TinyStoriesV2-GPT4-train.txt": Published(
        2_227_753_162, "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443"
    ),
    "TinyStoriesV2-GPT4-valid.txt": Published(
        22_502_601, "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d"
    ),
}
PATIENCE = Patience()


def download(edition: str, folder: Path, mirror: str = "") -> tuple[Path, Path]:
    """Bring the training and the validation file of an edition onto this machine.

    Args:
        edition: a key of `FILES`.
        folder: where the files, whole or begun, are kept.
        mirror: the URL of a folder or the path of one that has the files; empty: the hub.

    Raises:
        UserError: a file cannot be had, or is not the published one, or would not fit the disk.
    """
    names = FILES[edition]
    folder = folder / REVISION
    found = {name: _find(name, folder, mirror) for name in names}
    _require_space(folder, found)
    train, valid = (found[name] or _fetch(name, folder, mirror) for name in names)
    return train, valid


def _find(name: str, folder: Path, mirror: str) -> Path | None:
    """The file, if it is on this machine already."""
    if (folder / name).exists():
        return folder / name
    if mirror and not _is_url(mirror):
        return _checked(Path(mirror) / name)
    cached = try_to_load_from_cache(REPOSITORY, name, revision=REVISION, repo_type="dataset")
    if not isinstance(cached, str):
        return None
    if reason := transfer.difference(Path(cached), PUBLISHED[name]):
        print(f"{cached} is not the published file ({reason}) and is left alone", flush=True)
        return None
    return Path(cached)


def _checked(path: Path) -> Path:
    try:
        reason = transfer.difference(path, PUBLISHED[path.name])
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UserError(
            f"{path} is refused ({reason}): let corpus.mirror be a URL or a folder that has "
            f"{path.name} as published, or leave it empty"
        )
    return path


def _fetch(name: str, folder: Path, mirror: str) -> Path:
    hub = hf_hub_url(REPOSITORY, name, repo_type="dataset", revision=REVISION)
    url = f"{mirror.rstrip('/')}/{name}" if mirror else hub
    place = re.sub("//[^/@]*@", "//", mirror) or constants.ENDPOINT
    target, published = folder / name, PUBLISHED[name]
    left = transfer.remaining(target, published)
    print(f"{name}: {left:,} of {published.size:,} bytes to download from {place}", flush=True)
    try:
        transfer.fetch(url, target, published, PATIENCE)
    except TransferError as error:
        again = "go on where it stopped" if error.resumable else "begin anew"
        raise UserError(
            f"{name} could not be downloaded from {place} ({error}): try again to {again}, set "
            "corpus.mirror or HF_ENDPOINT to another place, or set corpus.source to storybook or "
            f"to a folder that holds {name}"
        ) from None
    return target


def _require_space(folder: Path, found: dict[str, Path | None]) -> None:
    """Refuse to begin what cannot end: the download and the corpus, where that is on one disk."""
    missing = [name for name, path in found.items() if path is None]
    needed = sum(transfer.remaining(folder / name, PUBLISHED[name]) for name in missing)
    existing = transfer.existing(folder)
    if existing.stat().st_dev == Path().stat().st_dev:
        needed += sum(PUBLISHED[name].size for name in found)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"the disk of {existing} has room for {free:,} bytes, and {needed:,} are needed for "
            "what is yet to be downloaded and the corpus made of it: make room, or run where "
            "there is some"
        )


def _is_url(mirror: str) -> bool:
    return "://" in mirror
