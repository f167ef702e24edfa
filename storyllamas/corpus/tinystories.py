"""TinyStories (Eldan and Li, 2023, https://arxiv.org/abs/2305.07759), from Hugging Face.

`HF_ENDPOINT` names a mirror; the hub's cache on this machine is looked into first. A download that
was broken off goes on where it stopped.
"""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils.sha import sha_fileobj

from storyllamas.errors import UserError

REPOSITORY = "roneneldan/TinyStories"
REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
FILES = {
    "v1": ("TinyStories-train.txt", "TinyStories-valid.txt"),
    "v2-gpt4": ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
}


def download(edition: str, folder: Path) -> tuple[Path, Path]:
    """Bring the training and the validation file of an edition onto this machine.

    Args:
        edition: a key of `FILES`.
        folder: where the files, whole or begun, are kept.

    Raises:
        UserError: a file cannot be had, or is not what the hub says it is.
    """
    train, valid = FILES[edition]
    return _fetch(train, folder / REVISION), _fetch(valid, folder / REVISION)


def _fetch(name: str, folder: Path) -> Path:
    cached = try_to_load_from_cache(REPOSITORY, name, revision=REVISION, repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached)
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{name}.partial"
        try:
            _resume(name, partial)
        except (httpx2.HTTPError, OSError) as error:
            raise _explained(name, error) from None
        partial.replace(target)
    return target


def _resume(name: str, partial: Path) -> None:
    """Download what `partial` lacks of a file, and check its size and, if known, its SHA-256.

    `hf_hub_download` begins anew in a new process; its own `http_get` goes on.
    """
    url = hf_hub_url(REPOSITORY, name, repo_type="dataset", revision=REVISION)
    metadata = get_hf_file_metadata(url, token=False)
    with partial.open("ab") as file:
        if metadata.size is not None and file.tell() > metadata.size:
            file.truncate(0)
            file.seek(0)
        http_get(
            metadata.location,
            file,
            resume_size=file.tell(),
            expected_size=metadata.size,
            displayed_filename=name,
        )
    _check_digest(partial, metadata)


def _check_digest(partial: Path, metadata: HfFileMetadata) -> None:
    """The ETag of a large file is its SHA-256."""
    if not re.fullmatch("[0-9a-f]{64}", metadata.etag or ""):
        return
    with partial.open("rb") as file:
        digest = sha_fileobj(file).hex()
    if digest != metadata.etag:
        partial.unlink()
        raise OSError(f"its SHA-256 is {digest}, not {metadata.etag}")


def _explained(name: str, error: Exception) -> UserError:
    if isinstance(error, HfHubHTTPError):
        reason = f"HTTP status {error.response.status_code}"
    else:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return UserError(
        f"{name} could not be downloaded from {constants.ENDPOINT} ({reason}): try again to go on "
        "where it stopped, set HF_ENDPOINT to a mirror, or set corpus.source to storybook or to a "
        f"folder that holds {name}"
    )
