"""Downloads from a faulty server: the file, the messages, and the partial files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from hub import Fault, Hub, nobody_listens, serving
from huggingface_hub import close_session, constants

from storyllamas.corpus import transfer
from storyllamas.corpus.transfer import RetrySettings, TransferError

NAME = "TinyStories-train.txt"
QUICK = RetrySettings(pauses=(0, 0.001, 0.002), jitter=0, timeout=30, max_wait=5)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off offline mode, which the environment or another test may have switched on."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    close_session()
    with serving() as hub:
        yield hub
    close_session()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / NAME


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record every pause instead of waiting."""
    waits: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    return waits


def fetch(hub: Hub, target: Path, *faults: Fault, retries: RetrySettings = QUICK) -> None:
    published = hub.published()[target.name]
    hub.faults[:] = faults
    transfer.fetch(f"{hub.endpoint}/mirror/{target.name}", target, published, retries)
    assert target.read_bytes() == hub.files[target.name]
    assert sorted(path.name for path in target.parent.iterdir()) == [NAME, f"{NAME}.lock"]


def partial(target: Path, data: bytes) -> Path:
    path = target.with_name(f"{NAME}.partial")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("then", ["end", "reset"])
def test_resumes_after_the_last_byte_wherever_it_is_cut(
    hub: Hub, target: Path, then: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size = len(hub.files[NAME])
    cuts = [*sorted(random.Random(1).sample(range(size), 40)), size - 1]
    fetch(hub, target, *(Fault(cut_at=cut, then=then) for cut in cuts))
    starts = [start for _, start in hub.gets]
    assert len(starts) == len(cuts) + 1
    if then == "end":
        assert starts == [0, *cuts]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(cuts)
    assert all(line.startswith(f"{NAME}: ") and "retry 1 of 3" in line for line in lines)


@pytest.mark.parametrize("cut", [0, 1, 70_000])
def test_a_stall_is_a_broken_connection(
    hub: Hub, target: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(hub, target, Fault(cut_at=cut, then="stall"), retries=replace(QUICK, timeout=0.3))
    # On a busy machine, a later request may time out, too.
    assert [start for _, start in hub.gets][:2] == [0, cut]
    output = capsys.readouterr().out
    assert f"no byte for 0.3 s at byte {cut:,} of {len(hub.files[NAME]):,}; retry 1" in output


def test_a_chunked_response_that_ends_early_is_resumed(hub: Hub, target: Path) -> None:
    fetch(hub, target, Fault(chunked=True, cut_at=5000))
    assert [start for _, start in hub.gets] == [0, 5000]


def test_no_byte_is_lost_with_a_server_without_ranges(hub: Hub, target: Path) -> None:
    whole = {"ignore_range": True}
    fetch(hub, target, Fault(cut_at=9000), Fault(cut_at=50, **whole), Fault(**whole))
    assert [start for _, start in hub.gets] == [0, 9000, 9000]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_tried_again(
    hub: Hub, target: Path, status: int, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(hub, target, *[Fault(status=status)] * 3)
    assert waits == list(QUICK.pauses)
    lines = capsys.readouterr().out.splitlines()
    assert [f"HTTP status {status}" in line for line in lines] == [True] * 3


def test_pauses_grow_with_jitter(hub: Hub, target: Path, waits: list[float]) -> None:
    fetch(hub, target, *[Fault(status=503)] * 5, retries=RetrySettings())
    for wait, pause in zip(waits, RetrySettings.pauses, strict=True):
        assert pause <= wait <= 1.25 * pause
    assert waits != list(RetrySettings.pauses)


def test_a_received_byte_resets_the_pauses(hub: Hub, target: Path, waits: list[float]) -> None:
    busy, cut = Fault(status=503), Fault(cut_at=1000)
    fetch(hub, target, busy, busy, busy, cut, busy, busy)
    assert waits == [*QUICK.pauses, *QUICK.pauses]


def test_a_download_without_progress_fails(hub: Hub, target: Path) -> None:
    with pytest.raises(TransferError, match="the response ended early, 4 times in a row") as caught:
        fetch(hub, target, *[Fault(ignore_range=True, chunked=True, cut_at=700)] * 9)
    assert caught.value.resumable
    assert len(hub.gets) == 4
    fetch(hub, target)
    assert hub.gets[-1] == (NAME, 700)


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "3"},
        {"RateLimit": '"resolvers";r=0;t=3'},
        {"Retry-After": "soon"},
    ],
)
def test_the_wait_is_as_long_as_the_server_asks(
    hub: Hub, target: Path, headers: dict[str, str], waits: list[float]
) -> None:
    retries = RetrySettings(pauses=(0.5,), jitter=0, max_wait=3600)
    fetch(hub, target, Fault(status=429, headers=headers), retries=retries)
    assert waits == [0.5 if headers == {"Retry-After": "soon"} else 3]


def test_the_wait_may_be_a_time_of_day(hub: Hub, target: Path, waits: list[float]) -> None:
    later = format_datetime(datetime.now(timezone.utc) + timedelta(hours=1))
    fault = Fault(status=429, headers={"Retry-After": later})
    fetch(hub, target, fault, retries=replace(QUICK, max_wait=3600))
    assert 3000 < waits[0] <= 3600


def test_a_wait_above_the_limit_is_an_error(hub: Hub, target: Path, waits: list[float]) -> None:
    with pytest.raises(TransferError, match=r"HTTP status 429, .* asks to wait 7,200 s"):
        fetch(hub, target, Fault(status=429, headers={"Retry-After": "7200"}))
    assert not waits


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(status=403), "HTTP status 403"),
        (Fault(length_error=1), "its size is .* bytes, not "),
        (Fault(length_error=-1), "its size is .* bytes, not "),
        (Fault(body=b"hello"), "its size is 5 bytes, not "),
        (Fault(headers={"Content-Type": "text/html; charset=utf-8"}), "web page"),
        (Fault(headers={"Content-Encoding": "gzip"}), "header"),
    ],
)
def test_nothing_is_written_of_a_response_that_cannot_be_the_file(
    hub: Hub, target: Path, fault: Fault, words: str
) -> None:
    with pytest.raises(TransferError, match=words) as caught:
        fetch(hub, target, fault)
    assert caught.value.resumable
    assert target.with_name(f"{NAME}.partial").stat().st_size == 0
    assert len(hub.gets) == 1
    fetch(hub, target)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(shift=1), "does not begin there"),
        (Fault(status=206), "does not begin there"),
        (Fault(length_error=7), "its size is"),
        (Fault(status=416, headers={"Content-Type": "text/html"}), "does not begin there"),
        (Fault(status=416, headers={"Content-Range": "bytes */5"}), "its size is 5 bytes"),
        (Fault(body=b"hello"), "its size is 5 bytes"),
    ],
)
def test_a_wrong_range_leaves_the_partial_file(
    hub: Hub, target: Path, fault: Fault, words: str
) -> None:
    kept = partial(target, hub.files[NAME][:1000])
    with pytest.raises(TransferError, match=words):
        fetch(hub, target, fault)
    assert kept.read_bytes() == hub.files[NAME][:1000]
    fetch(hub, target)
    assert hub.gets[-1] == (NAME, 1000)


@pytest.mark.parametrize("longer", [False, True])
def test_a_wrong_file_is_kept_under_another_name(hub: Hub, target: Path, longer: bool) -> None:
    right = hub.files[NAME]
    wrong = b"x" + (right if longer else right[1:])
    with pytest.raises(TransferError) as caught:
        fetch(hub, target, Fault(body=wrong, chunked=True))
    bad = target.with_name(f"{NAME}.bad")
    assert ("its size is" if longer else "its SHA-256 is") in str(caught.value)
    assert str(bad) in str(caught.value)
    assert not caught.value.resumable
    assert bad.read_bytes()[:-1] == wrong[: bad.stat().st_size - 1]
    bad.unlink()
    fetch(hub, target)
    assert hub.gets[-1] == (NAME, 0)


def test_an_endless_response_is_not_read_to_the_end(hub: Hub, target: Path) -> None:
    with pytest.raises(TransferError, match="its size is"):
        fetch(hub, target, Fault(body=hub.files[NAME] * 100, chunked=True))
    assert target.with_name(f"{NAME}.bad").stat().st_size < 2 * len(hub.files[NAME]) + (1 << 20)


def test_a_file_that_changes_between_two_attempts_is_rejected(hub: Hub, target: Path) -> None:
    changed = bytes(reversed(hub.files[NAME]))
    with pytest.raises(TransferError, match="SHA-256"):
        fetch(hub, target, Fault(cut_at=20_000), Fault(body=changed))
    target.with_name(f"{NAME}.bad").unlink()
    fetch(hub, target)


def test_a_partial_file_that_is_too_long_is_downloaded_again(hub: Hub, target: Path) -> None:
    partial(target, b"x" * (len(hub.files[NAME]) + 1))
    fetch(hub, target)
    assert hub.gets == [(NAME, 0)]


def test_a_complete_partial_file_needs_no_request(hub: Hub, target: Path) -> None:
    partial(target, hub.files[NAME])
    fetch(hub, target)
    assert hub.gets == []


def test_an_unreachable_server_is_tried_again(target: Path, waits: list[float]) -> None:
    published = transfer.Published(5, "0" * 64)
    with nobody_listens() as url, pytest.raises(TransferError, match="refused"):
        transfer.fetch(f"{url}/x", target, published, QUICK)
    assert len(waits) == 3


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://[", "http://"])
def test_an_invalid_url_is_an_error_at_once(target: Path, url: str) -> None:
    with pytest.raises(TransferError):
        transfer.fetch(url, target, transfer.Published(5, "0" * 64), QUICK)


def test_a_full_disk_is_named(hub: Hub, target: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    target.with_name(f"{NAME}.partial").symlink_to("/dev/full")
    with pytest.raises(TransferError, match="No space left on device"):
        fetch(hub, target)
