"""TinyStories (Eldan and Li, 2023, https://arxiv.org/abs/2305.07759), from Hugging Face.

A file is taken from the first place that has it: an earlier download, the folder `corpus.mirror`,
the cache of huggingface_hub on this machine, and then the URL `corpus.mirror` or the hub.
`HF_ENDPOINT` names a mirror with the layout of the hub; `corpus.mirror` is a folder or URL that
contains the files directly. Wherever a file comes from, it must equal the published one byte for
byte.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

from storyllamas.corpus import transfer
from storyllamas.corpus.transfer import Published, RetrySettings, TransferError
from storyllamas.errors import UserError

REPOSITORY = "roneneldan/TinyStories"
REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
FILES = {
    "v1": ("TinyStories-train.txt", "TinyStories-valid.txt"),
    "v2-gpt4": ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
}
INSTRUCT_FILES = ("TinyStories-Instruct-train.txt", "TinyStories-Instruct-valid.txt")
"""The files of TinyStories-Instruct, another dataset."""
PROMPTS = "Evaluation prompts.yaml"
"""The prompts with which the paper compares models; a list of lists of one text."""

PUBLISHED = {
    PROMPTS: Published(11_759, "a915216be5516348af9db387c5bb51e8e930e7997eb0543a3de0bf63c7fe81ee"),
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
RETRIES = RetrySettings()


def download(edition: str, folder: Path, mirror: str = "") -> tuple[Path, Path]:
    """Return the paths of an edition's training and validation file; download missing files.

    Args:
        edition: a key of `FILES`.
        folder: the folder for complete and partial downloads.
        mirror: URL or path of a folder that has the files; empty: the hub.

    Raises:
        UserError: a file cannot be downloaded, differs from the published one, or does not fit on
            the disk.
    """
    names = FILES[edition]
    folder = folder / REVISION
    found = {name: _find(name, folder, mirror) for name in names}
    _require_space(folder, found)
    train, valid = (found[name] or _fetch(name, folder, mirror) for name in names)
    return train, valid


def download_prompts(folder: Path, mirror: str = "") -> Path:
    """Return the path of `PROMPTS`; download it if it is missing.

    Args:
        folder: as for `download`.
        mirror: as for `download`.

    Raises:
        UserError: as for `download`.
    """
    return _find(PROMPTS, folder, mirror) or _fetch(PROMPTS, folder, mirror)


def _find(name: str, folder: Path, mirror: str) -> Path | None:
    """Return the path of a file that is on this machine, or None."""
    if (folder / name).exists():
        return folder / name
    if mirror and not _is_url(mirror):
        return _checked(Path(mirror).expanduser() / name)
    cached = try_to_load_from_cache(REPOSITORY, name, revision=REVISION, repo_type="dataset")
    if not isinstance(cached, str):
        return None
    if reason := transfer.difference(Path(cached), PUBLISHED[name]):
        print(f"{cached} is not the published file ({reason}) and is ignored", flush=True)
        return None
    return Path(cached)


def _checked(path: Path) -> Path:
    try:
        reason = transfer.difference(path, PUBLISHED[path.name])
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UserError(
            f"{path} cannot be used ({reason}): set corpus.mirror to a URL or a folder that has "
            f"{path.name} as published, or leave it empty"
        )
    return path


def _fetch(name: str, folder: Path, mirror: str) -> Path:
    hub = hf_hub_url(REPOSITORY, name, repo_type="dataset", revision=REVISION)
    url = f"{mirror.rstrip('/')}/{quote(name)}" if mirror else hub
    place = re.sub("//[^/@]*@", "//", mirror) or constants.ENDPOINT
    target, published = folder / name, PUBLISHED[name]
    left = transfer.remaining(target, published)
    print(f"{name}: downloading {left:,} of {published.size:,} bytes from {place}", flush=True)
    try:
        transfer.fetch(url, target, published, RETRIES)
    except TransferError as error:
        again = "resume" if error.resumable else "restart"
        raise UserError(
            f"{name} could not be downloaded from {place} ({error}): run it again to {again} the "
            "download, set corpus.mirror or HF_ENDPOINT to another place, or set corpus.source to "
            f"storybook or to a folder that has {name}"
        ) from None
    return target


def _require_space(folder: Path, found: dict[str, Path | None]) -> None:
    """Check that the disk has room for the download and, on the same disk, for the corpus files."""
    missing = [name for name, path in found.items() if path is None]
    needed = sum(transfer.remaining(folder / name, PUBLISHED[name]) for name in missing)
    existing = transfer.existing(folder)
    if existing.stat().st_dev == Path().stat().st_dev:
        needed += sum(PUBLISHED[name].size for name in found)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"the disk of {existing} has {free:,} free bytes, and the download and the corpus "
            f"files need {needed:,}: free some, or run on another disk"
        )


def _is_url(mirror: str) -> bool:
    return "://" in mirror
