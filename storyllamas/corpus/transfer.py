"""Files over HTTP, each of a known size and digest: fetched once, resumed at any byte.

What came is appended to `NAME.partial` at once, so that a later try, of this process or another,
goes on behind it. A server that does not know ranges costs time, never what is there already.
Proxies are those of the environment (`HTTPS_PROXY`, `NO_PROXY`, …).
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
    """What a file must be.

    Attributes:
        size: bytes.
        sha256: digest, in lower-case hexadecimal.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Patience:
    """How a server is waited for.

    Attributes:
        pauses: seconds before each further try; counted from the first again when a byte came.
        jitter: share by which a pause may be longer, at random, so that many who were cut off
            together do not come back together.
        silence: seconds without a byte after which a connection counts as broken.
        longest: most seconds that a server may ask to wait.
    """

    pauses: tuple[float, ...] = (1, 2, 4, 8, 16)
    jitter: float = 0.25
    silence: float = constants.HF_HUB_DOWNLOAD_TIMEOUT
    longest: float = 600


class TransferError(Exception):
    """Why a file cannot be had, as a phrase.

    Attributes:
        resumable: another try goes on where this one stopped.
    """

    def __init__(self, reason: str, resumable: bool = True) -> None:
        super().__init__(reason)
        self.resumable = resumable


class _InterruptionError(Exception):
    """Something that may be over in a while.

    Attributes:
        wait: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch(url: str, target: Path, published: Published, patience: Patience) -> None:
    """Download a file, unless it is there; one process at a time, the others wait.

    Raises:
        TransferError: it cannot be had. A file that came whole but is not the published one is
            kept as `NAME.bad`.
    """
    with locked(target.with_name(f"{target.name}.lock"), f"the process that loads {target.name}"):
        if target.exists():
            return
        partial = target.with_name(f"{target.name}.partial")
        try:
            _receive(url, partial, published.size, patience)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise TransferError(_phrase(error)) from None
        if reason := difference(partial, published):
            bad = partial.replace(target.with_name(f"{target.name}.bad"))
            raise TransferError(f"{reason}; what came is kept as {bad}", resumable=False)
        partial.replace(target)


def remaining(target: Path, published: Published) -> int:
    """Bytes that `fetch` has yet to download."""
    partial = target.with_name(f"{target.name}.partial")
    if target.exists():
        return 0
    return max(0, published.size - (partial.stat().st_size if partial.exists() else 0))


def difference(path: Path, published: Published) -> str | None:
    """In what a file differs from the published one, as a phrase; None if in nothing."""
    size = path.stat().st_size
    if size != published.size:
        return _wrong_size(size, published.size)
    with path.open("rb") as file:
        digest = sha_fileobj(file).hex()
    if digest != published.sha256:
        return f"its SHA-256 is {digest}, not {published.sha256}"
    return None


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _receive(url: str, partial: Path, size: int, patience: Patience) -> None:
    """Append to `partial` until it has `size` bytes, or more if the server sends more."""
    if partial.exists() and partial.stat().st_size > size:
        partial.unlink()
    tries = 0
    with partial.open("ab") as file, _bar(partial.stem, size) as bar:
        while (before := file.tell()) < size:
            bar.update(bar.task_ids[0], completed=before)
            try:
                _request(url, file, size, patience, bar)
                continue
            except _BROKEN as error:
                interruption = _InterruptionError(_phrase(error, patience.silence))
            except _InterruptionError as error:
                interruption = error
            tries = 1 if file.tell() > before else tries + 1
            pause = _pause(interruption, tries, patience)
            bar.console.print(
                f"{partial.stem}: {interruption} at byte {file.tell():,} of {size:,}; "
                f"going on in {pause:.0f} s (try {tries} of {len(patience.pauses)})",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )
            time.sleep(pause)
        os.fsync(file.fileno())


def _pause(interruption: _InterruptionError, tries: int, patience: Patience) -> float:
    """Seconds to wait before try number `tries`."""
    if interruption.wait > patience.longest:
        raise TransferError(f"{interruption}, and no more for {interruption.wait:,.0f} s")
    if tries > len(patience.pauses):
        raise TransferError(f"{interruption}, {tries} times in a row")
    pause = max(interruption.wait, patience.pauses[tries - 1])
    return pause * (1 + random.uniform(0, patience.jitter))


def _request(url: str, file: BinaryIO, size: int, patience: Patience, bar: bars.Progress) -> None:
    """Append what one answer has of the file."""
    have = file.tell()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream(
        "GET", url, headers=headers, timeout=patience.silence, follow_redirects=True
    ) as response:
        skipped = have - _first_byte(response, have, size)
        for chunk in response.iter_bytes():
            file.write(chunk[skipped:])
            file.flush()
            skipped = max(0, skipped - len(chunk))
            bar.update(bar.task_ids[0], completed=file.tell())
            if file.tell() > size:
                return
    if file.tell() < size:
        raise _InterruptionError("the answer ended")


def _first_byte(response: httpx2.Response, have: int, size: int) -> int:
    """Which byte of the file the answer begins with; at most `have`."""
    status = response.status_code
    if status in _BUSY:
        raise _InterruptionError(f"HTTP status {status}", _asked_wait(response))
    if status not in (200, 206, 416):
        raise TransferError(f"HTTP status {status}")
    if status != 416 and response.headers.get("Content-Type", "").startswith("text/html"):
        raise TransferError("the answer is a web page, not the file")
    first, total = _extent(response)
    if total is not None and total != size:
        raise TransferError(_wrong_size(total, size))
    if first is None or first > have:
        raise TransferError(f"the answer to a request for byte {have:,} does not begin there")
    return first


def _extent(response: httpx2.Response) -> tuple[int | None, int | None]:
    """The first byte of the answer and the size of the whole file; None for what it hides."""
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
    """Seconds that the server asks to wait; 0 if it does not say."""
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


def _phrase(error: Exception, silence: float = 0) -> str:
    if isinstance(error, httpx2.ReadTimeout):
        return f"no byte for {silence:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


@contextmanager
def _bar(name: str, size: int) -> Iterator[bars.Progress]:
    """A bar in a terminal, nothing elsewhere."""
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
