"""Checkpoints, logs and files, on disks that are full, damaged or shared."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from training_job import make_checkpoint

from storyllamas.atomic import atomic_file, atomic_folder, write_text
from storyllamas.training import checkpoints
from storyllamas.training.checkpoints import Checkpoint, CheckpointFolder, CheckpointSaver
from storyllamas.training.csv_log import CsvLog


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def flip(file: Path, part: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(part * len(data))] ^= 1
    file.write_bytes(data)


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a header's length": lambda file: flip(file, 0),
    "a header": lambda file: flip(file, 0.02),
    "a weight": lambda file: flip(file, 0.5),
    "the last byte": lambda file: flip(file, 0.9999),
    "cut short": lambda file: os.truncate(file, 2000),
    "cut in the header": lambda file: os.truncate(file, 5),
    "empty": lambda file: os.truncate(file, 0),
    "of another step": lambda file: shutil.copy(file.with_name("000000001.safetensors"), file),
    "other tensors": lambda file: file.write_bytes(b"\x02" + bytes(7) + b"{}"),
    "text": lambda file: file.write_text("once upon a time " * 100),
    "not readable": become_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_skipped(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(make_checkpoint(1))
    folder.save(make_checkpoint(2))
    first, second = sorted(tmp_path.glob("*.safetensors"))
    DAMAGE[damage](second)
    latest = folder.latest()
    assert latest is not None
    assert (latest.step, latest.metadata) == (1, make_checkpoint(1).metadata)
    assert all(torch.equal(latest.tensors[k], v) for k, v in make_checkpoint(1).tensors.items())
    said = capsys.readouterr().out
    assert said.startswith(f"{second} ")
    assert said.endswith(": use the one before it\n")
    first.write_bytes(b"")
    assert folder.latest() is None
    assert f"{first} is damaged: start from the beginning\n" in capsys.readouterr().out


def test_damaged_checkpoints_do_not_replace_an_intact_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (10, 30, 40):
        folder.save(Checkpoint(step, {"x": torch.tensor([step])}, {}))
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    assert folder.latest() is None
    for step in (5, 6, 7):
        folder.save(Checkpoint(step, {"x": torch.tensor([step])}, {"a": step}))
    latest = folder.latest()
    assert latest is not None
    assert (latest.step, latest.tensors["x"].item(), latest.metadata) == (7, 7, {"a": 7})
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_an_unreadable_checkpoint_does_not_replace_intact_ones(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    (tmp_path / "000000009.safetensors").mkdir()
    for step in range(1, 6):
        folder.save(make_checkpoint(step))
    latest = folder.latest()
    assert latest is not None
    assert latest.step == 5
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_full_disk_is_reported_once_until_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = CheckpointSaver(CheckpointFolder(tmp_path), 0, 0, 0.0)
    saver.save(lambda: make_checkpoint(1))
    with files_of_at_most(3000):
        saver.save(lambda: make_checkpoint(2))
        saver.save(lambda: make_checkpoint(3))
        warning = capsys.readouterr().out
        saver.save(lambda: make_checkpoint(4), last=True)
        assert "tries again" not in capsys.readouterr().out
    assert saver.resumption == "resumes from step 1"
    assert warning.startswith(f"no checkpoint of step 2, the newest is of step 1: {tmp_path} needs")
    assert warning.endswith("make room there; training continues and tries again\n")
    assert warning.count("\n") == 1
    latest = CheckpointFolder(tmp_path).latest()
    assert latest is not None
    assert latest.step == 1
    assert [file.name for file in tmp_path.iterdir()] == ["000000001.safetensors"]
    saver.save(lambda: make_checkpoint(5))
    assert capsys.readouterr().out == "saved the checkpoint of step 5 again\n"
    assert saver.resumption == "resumes from step 5"


def test_a_folder_that_vanishes_does_not_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").touch()
    saver = CheckpointSaver(CheckpointFolder(tmp_path / "disk" / "run"), 0, 0, 0.0)
    saver.save(lambda: make_checkpoint(1))
    assert saver.resumption == "starts from the beginning"
    assert "cannot be written to (Not a directory), make it writable" in capsys.readouterr().out


@pytest.mark.parametrize("takes", [0.01, 3.0])
def test_saving_takes_little_of_the_time(
    tmp_path: Path, takes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)

    class Slow(CheckpointFolder):
        def save(self, checkpoint: Checkpoint) -> None:
            nonlocal now
            now += takes

    saver = CheckpointSaver(Slow(tmp_path), 20, 0, 0.0)
    steps = 0
    while now < 100_000:
        now += 0.7
        steps += 1
        if saver.is_due():
            saver.save(lambda step=steps: make_checkpoint(step))
    assert 0 < saver.seconds <= 0.02 * now
    assert saver.seconds >= takes * min(now / 21, now * 0.019 / takes)


def test_a_log_misses_rows_on_a_full_disk_and_is_complete_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "steps.csv"
    rows = [{"step": step, "loss": step / 7} for step in range(100)]
    log = CsvLog(path, ("step", "loss"))
    for row in rows[:10]:
        log.append(row)
    with files_of_at_most(300):
        for row in rows[10:90]:
            log.append(row)
        with pytest.raises(OSError, match=f"'{path}'"):
            log.close()
    said = capsys.readouterr().out
    assert said.startswith(f"{path} misses rows: ")
    assert said.count("\n") == 1
    log.append(rows[90])
    assert path.read_text().count("\n") == 92
    for row in rows[91:]:
        log.append(row)
    path.unlink()  # by somebody
    log.close()
    whole = path.read_text()
    assert whole.splitlines()[:3] == ["step,loss", "0,0.0", "1,0.142857"]
    assert whole.count("\n") == 101
    CsvLog(tmp_path / "again.csv", ("step", "loss"), log.rows).close()
    assert (tmp_path / "again.csv").read_text() == whole


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_leftovers_of_killed_writers_are_removed(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    dead, busy, other = (tmp_path / f".{name}.tmp" for name in ("x.dead", "x.busy", "y.dead"))
    for folder in (dead, busy, other):
        folder.mkdir()
        (folder / "x").write_text("half")
    handle = os.open(busy, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with make(tmp_path / "x"):
        assert {dead.exists(), busy.exists(), other.exists()} == {False, True}
    os.close(handle)
    assert not dead.exists()
    assert other.exists()
    with make(tmp_path / "x"):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == [other.name, "x"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")

    def fail() -> None:
        with files_of_at_most(10), atomic_file(target) as file:
            file.write(bytes(100))

    with pytest.raises(OSError, match=f"'{target}'"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    old_mask = os.umask(0o027)
    with atomic_file(target) as file:
        file.write(b"new")
    os.umask(old_mask)
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_special_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "once upon a time")
    assert os.read(reader, 100) == b"once upon a time"
    assert pipe.is_fifo()
    os.close(reader)
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "")
