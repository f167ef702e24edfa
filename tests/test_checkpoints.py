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
from training_job import make_state as state

from storyllamas.atomic import atomic_file, atomic_folder, write_text
from storyllamas.training import checkpoints
from storyllamas.training.checkpoints import Keeper, RunFolder, State
from storyllamas.training.csv_log import Table


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, no file grows beyond a size."""
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
    "another's": lambda file: shutil.copy(file.with_name("000000001.safetensors"), file),
    "other tensors": lambda file: file.write_bytes(b"\x02" + bytes(7) + b"{}"),
    "text": lambda file: file.write_text("once upon a time " * 100),
    "not readable": become_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_passed_over(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    folder.save(state(1))
    folder.save(state(2))
    first, second = sorted(tmp_path.glob("*.safetensors"))
    DAMAGE[damage](second)
    latest = folder.latest()
    assert latest is not None
    assert (latest.step, latest.notes) == (1, state(1).notes)
    assert all(torch.equal(latest.tensors[k], v) for k, v in state(1).tensors.items())
    said = capsys.readouterr().out
    assert said.startswith(f"{second} ")
    assert said.endswith(": going back to the one before it\n")
    first.write_bytes(b"")
    assert folder.latest() is None
    assert f"{first} is damaged: starting anew\n" in capsys.readouterr().out


def test_damaged_states_do_not_push_out_a_whole_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (10, 30, 40):
        folder.save(State(step, {"x": torch.tensor([step])}, {}))
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    assert folder.latest() is None
    for step in (5, 6, 7):
        folder.save(State(step, {"x": torch.tensor([step])}, {"a": step}))
    latest = folder.latest()
    assert latest is not None
    assert (latest.step, latest.tensors["x"].item(), latest.notes) == (7, 7, {"a": 7})
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_state_that_cannot_be_read_does_not_push_out_whole_ones(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "000000009.safetensors").mkdir()
    for step in range(1, 6):
        folder.save(state(step))
    latest = folder.latest()
    assert latest is not None
    assert latest.step == 5
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_full_disk_is_said_once_until_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Keeper(RunFolder(tmp_path), 0, 0, 0.0)
    kept.keep(lambda: state(1))
    with files_of_at_most(3000):
        kept.keep(lambda: state(2))
        kept.keep(lambda: state(3))
        warning = capsys.readouterr().out
        kept.keep(lambda: state(4), last=True)
        assert "tries again" not in capsys.readouterr().out
    assert kept.resumption == "goes on from step 1"
    assert warning.startswith(f"no checkpoint of step 2, that of step 1 is kept: {tmp_path} needs")
    assert warning.endswith("make room there; training goes on and tries again\n")
    assert warning.count("\n") == 1
    latest = RunFolder(tmp_path).latest()
    assert latest is not None
    assert latest.step == 1
    assert [file.name for file in tmp_path.iterdir()] == ["000000001.safetensors"]
    kept.keep(lambda: state(5))
    assert capsys.readouterr().out == "the checkpoint of step 5 could be written again\n"
    assert kept.resumption == "goes on from step 5"


def test_a_folder_that_vanishes_does_not_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").touch()
    kept = Keeper(RunFolder(tmp_path / "disk" / "run"), 0, 0, 0.0)
    kept.keep(lambda: state(1))
    assert kept.resumption == "begins anew"
    assert "cannot be written to (Not a directory), make it writable" in capsys.readouterr().out


@pytest.mark.parametrize("takes", [0.01, 3.0])
def test_keeping_states_takes_little_of_the_time(
    tmp_path: Path, takes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)

    class Slow(RunFolder):
        def save(self, state: State) -> None:
            nonlocal now
            now += takes

    kept = Keeper(Slow(tmp_path), 20, 0, 0.0)
    steps = 0
    while now < 100_000:
        now += 0.7
        steps += 1
        if kept.due():
            kept.keep(lambda step=steps: state(step))
    assert 0 < kept.seconds <= 0.02 * now
    assert kept.seconds >= takes * min(now / 21, now * 0.019 / takes)


def test_a_log_is_behind_on_a_full_disk_and_whole_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "steps.csv"
    rows = [{"step": step, "loss": step / 7} for step in range(100)]
    table = Table(path, ("step", "loss"))
    for row in rows[:10]:
        table.append(row)
    with files_of_at_most(300):
        for row in rows[10:90]:
            table.append(row)
        with pytest.raises(OSError, match=f"'{path}'"):
            table.close()
    said = capsys.readouterr().out
    assert said.startswith(f"{path} is behind: ")
    assert said.count("\n") == 1
    table.append(rows[90])
    assert path.read_text().count("\n") == 92
    for row in rows[91:]:
        table.append(row)
    path.unlink()  # by somebody
    table.close()
    whole = path.read_text()
    assert whole.splitlines()[:3] == ["step,loss", "0,0.0", "1,0.142857"]
    assert whole.count("\n") == 101
    Table(tmp_path / "again.csv", ("step", "loss"), table.rows).close()
    assert (tmp_path / "again.csv").read_text() == whole


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_what_killed_writers_left_is_cleared(
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


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "once upon a time")
    assert os.read(reader, 100) == b"once upon a time"
    assert pipe.is_fifo()
    os.close(reader)
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "")
