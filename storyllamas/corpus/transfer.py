"""Downloads over HTTP of files with known size and digest, which can resume at any byte.

Received bytes are appended to `NAME.partial` at once, so that a later attempt, of this process or
another, resumes after them. A server without support for ranges costs time, but no received bytes
are lost. Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`, …).
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import sha_fileobj
from rich import progress as bars
from rich.console import Console

from storyllamas.workdir import locked

_BUSY = (408, 425, 429, *range(500, 600))
_BROKEN = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)


@dataclass(frozen=True)
class Published:
    """Size and digest of a published file.

    Attributes:
        size: length in bytes.
        sha256: SHA-256 digest, in lower-case hexadecimal.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class RetrySettings:
    """Settings of retries; all times are in seconds.

    Attributes:
        pauses: pause before each retry; starts again with the first after a received byte.
        jitter: share of a pause by which it may be longer, at random, so that many clients that
            lost their connection together do not reconnect together.
        timeout: time without a byte after which a connection counts as broken.
        max_wait: upper limit of the wait that a server may ask for.
    """

    pauses: tuple[float, ...] = (1, 2, 4, 8, 16)
    jitter: float = 0.25
    timeout: float = constants.HF_HUB_DOWNLOAD_TIMEOUT
    max_wait: float = 600


class TransferError(Exception):
    """A failed download; the message is a phrase that gives the reason.

    Attributes:
        resumable: whether another attempt resumes where this one stopped.
    """

    def __init__(self, reason: str, resumable: bool = True) -> None:
        super().__init__(reason)
        self.resumable = resumable


class _InterruptionError(Exception):
    """A failure that a retry may overcome.

    Attributes:
        wait: seconds that the server asks to wait; 0 if it does not ask.
    """

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch(url: str, target: Path, published: Published, retries: RetrySettings) -> None:
    """Download a file unless it exists; one process downloads, the others wait for it.

    Args:
        url: where the file is.
        target: where to write it.
        published: its size and digest.
        retries: settings of retries.

    Raises:
        TransferError: the download failed. A complete file that differs from the published one is
            kept as `NAME.bad`.
    """
    lock = target.with_name(f"{target.name}.lock")
    with locked(lock, f"the process that downloads {target.name}"):
        if target.exists():
            return
        partial = target.with_name(f"{target.name}.partial")
        try:
            _receive(url, partial, published.size, retries)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise TransferError(_phrase(error)) from None
        if reason := difference(partial, published):
            bad = partial.replace(target.with_name(f"{target.name}.bad"))
            raise TransferError(f"{reason}; the file is kept as {bad}", resumable=False)
        partial.replace(target)


def remaining(target: Path, published: Published) -> int:
    """Return the number of bytes that `fetch` still has to download."""
    partial = target.with_name(f"{target.name}.partial")
    if target.exists():
        return 0
    return max(0, published.size - (partial.stat().st_size if partial.exists() else 0))


def difference(path: Path, published: Published) -> str | None:
    """Return how a file differs from the published one, as a phrase, or None if it is equal."""
    size = path.stat().st_size
    if size != published.size:
        return _wrong_size(size, published.size)
    with path.open("rb") as file:
        digest = sha_fileobj(file).hex()
    if digest != published.sha256:
        return f"its SHA-256 is {digest}, not {published.sha256}"
    return None


def existing(folder: Path) -> Path:
    """Return the folder if it exists, else its nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _receive(url: str, partial: Path, size: int, retries: RetrySettings) -> None:
    """Append to `partial` until it has at least `size` bytes; the server may send more."""
    if partial.exists() and partial.stat().st_size > size:
        partial.unlink()
    tries = 0
    with partial.open("ab") as file, _bar(partial.stem, size) as bar:
        while (before := file.tell()) < size:
            bar.update(bar.task_ids[0], completed=before)
            try:
                _request(url, file, size, retries, bar)
                continue
            except _BROKEN as error:
                interruption = _InterruptionError(_phrase(error, retries.timeout))
            except _InterruptionError as error:
                interruption = error
            tries = 1 if file.tell() > before else tries + 1
            pause = _pause(interruption, tries, retries)
            bar.console.print(
                f"{partial.stem}: {interruption} at byte {file.tell():,} of {size:,}; "
                f"retry {tries} of {len(retries.pauses)} in {pause:.0f} s",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )
            time.sleep(pause)
        os.fsync(file.fileno())


def _pause(interruption: _InterruptionError, tries: int, retries: RetrySettings) -> float:
    """Return the seconds to wait before retry number `tries`, counted from 1."""
    if interruption.wait > retries.max_wait:
        raise TransferError(
            f"{interruption}, and the server asks to wait {interruption.wait:,.0f} s"
        )
    if tries > len(retries.pauses):
        raise TransferError(f"{interruption}, {tries} times in a row")
    pause = max(interruption.wait, retries.pauses[tries - 1])
    return pause * (1 + random.uniform(0, retries.jitter))


def _request(
    url: str, file: BinaryIO, size: int, retries: RetrySettings, bar: bars.Progress
) -> None:
    """Append the missing bytes of the file from one response."""
    have = file.tell()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream(
        "GET", url, headers=headers, timeout=retries.timeout, follow_redirects=True
    ) as response:
        to_skip = have - _first_byte(response, have, size)
        for chunk in response.iter_bytes():
            file.write(chunk[to_skip:])
            file.flush()
            to_skip = max(0, to_skip - len(chunk))
            bar.update(bar.task_ids[0], completed=file.tell())
            if file.tell() > size:
                return
    if file.tell() < size:
        raise _InterruptionError("the response ended early")


def _first_byte(response: httpx2.Response, have: int, size: int) -> int:
    """Return the offset in the file at which the response begins; at most `have`.

    Raises:
        TransferError: the response is not a part of the file that can be used.
        _InterruptionError: the server is busy.
    """
    status = response.status_code
    if status in _BUSY:
        raise _InterruptionError(f"HTTP status {status}", _asked_wait(response))
    if status not in (200, 206, 416):
        raise TransferError(f"HTTP status {status}")
    if status != 416 and response.headers.get("Content-Type", "").startswith("text/html"):
        raise TransferError("the response is a web page, not the file")
    first, total = _extent(response)
    if total is not None and total != size:
        raise TransferError(_wrong_size(total, size))
    if first is None or first > have:
        raise TransferError(f"the response to a request for byte {have:,} does not begin there")
    return first


def _extent(response: httpx2.Response) -> tuple[int | None, int | None]:
    """Return the response's offset in the file and the size of the file; None where unknown."""
    if response.status_code == 200:
        encoded = "Content-Encoding" in response.headers
        total = "" if encoded else response.headers.get("Content-Length", "")
        return 0, int(total) if total.isdecimal() else None
    extent = response.headers.get("Content-Range", "")
    if not (match := re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", extent)):
        return None, None
    first, total = match.groups()
    return int(first) if first else None, int(total) if total else None


def _asked_wait(response: httpx2.Response) -> float:
    """Return the seconds that the server asks to wait; 0 if it does not ask."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds()
    except (TypeError, ValueError):
        limit = parse_ratelimit_headers(response.headers)
        return limit.reset_in_seconds if limit and limit.remaining == 0 else 0


def _wrong_size(size: int, expected: int) -> str:
    return f"its size is {size:,} bytes, not {expected:,}"


def _phrase(error: Exception, timeout: float = 0) -> str:
    if isinstance(error, httpx2.ReadTimeout):
        return f"no byte for {timeout:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


@contextmanager
def _bar(name: str, size: int) -> Iterator[bars.Progress]:
    """Show a progress bar if the output is a terminal."""
    console = Console()
    with bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        bar.add_task(name, total=size)
        yield bar
