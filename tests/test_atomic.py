"""Files and folders appear complete or not at all, through links, pipes and kills."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT

from storyllamas import atomic
from storyllamas.atomic import atomic_file, atomic_folder, atomic_path, write_text


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    target = tmp_path / "sub" / "file"
    target.write_text("old")
    (tmp_path / "inner").symlink_to(target)
    link = tmp_path / "link"
    link.symlink_to("inner")
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert files(tmp_path / "sub") == {"file": "new"}


def test_a_dangling_link_gets_a_target(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("sub/file")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "sub/file").read_text() == "new"


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("seekable", [False, True])
def test_a_pipe_is_written_directly(tmp_path: Path, seekable: bool) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with atomic_file(pipe, seekable=seekable) as file:
        file.write(b"0000")
        if seekable:
            file.seek(0)
            file.write(b"12")
    reader.join()
    assert got == [b"1200" if seekable else b"0000"]
    assert pipe.is_fifo()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_an_open_file_is_written_and_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    script = "import sys; from storyllamas.atomic import write_text; write_text(sys.argv[1], 'new')"
    output = tmp_path / "output"
    output.write_text("old")
    before = output.stat().st_ino
    with output.open("ab") as file:
        subprocess.run([sys.executable, "-c", script, name], stdout=file, check=True, cwd=tmp_path)
    assert output.read_text() == "oldnew"
    assert output.stat().st_ino == before
    assert (tmp_path / "link").is_symlink()


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path) as temporary:
        temporary.write_text("x")


def test_a_folder_is_replaced_at_once(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
    target.chmod(0o750)
    (target / "mine").write_text("stays")
    (target / "link").symlink_to("mine")
    with atomic_folder(target) as folder:
        (folder / "a").write_text("2")
        (folder / "b").write_text("2")
    assert files(target) == {"a": "2", "b": "2", "mine": "stays", "link": "stays"}
    assert (target / "link").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "link").is_symlink()
    assert files(tmp_path / "real") == {"a": "1"}


def test_a_failure_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("1")

    def write() -> None:
        with atomic_folder(target) as folder:
            (folder / "a").write_text("2")
            (folder / "b").write_text("2")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("_sync", "_link_others", "_exchange"):
        with monkeypatch.context() as patched:
            patched.setattr(atomic, step, fail)
            with pytest.raises(OSError, match="No space left"):
                write()
        assert files(target) == {"a": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from storyllamas import atomic
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
step, exchange, target = sys.argv[1], sys.argv[2], sys.argv[3]
if exchange == "two renames":
    atomic.ctypes.CDLL = lambda *_, **__: object()
if step == "after":
    done, atomic._exchange = atomic._exchange, lambda *names: (done(*names), kill())
elif step == "between":
    atomic.Path.rename = lambda self, to, rename=atomic.Path.rename: (rename(self, to), kill())
else:
    setattr(atomic, step, kill)
with atomic.atomic_folder(target) as folder:
    (folder / "a").write_text("2")
    (folder / "b").write_text("2")
"""


@pytest.mark.parametrize("exchange", ["one rename", "two renames"])
@pytest.mark.parametrize("step", ["_sync", "_link_others", "_exchange", "between", "after"])
def test_a_killed_writer_leaves_all_or_nothing(tmp_path: Path, step: str, exchange: str) -> None:
    if (step, exchange) == ("between", "one rename"):
        return
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("1")
    done = subprocess.run([sys.executable, "-c", KILLED, step, exchange, target], check=False)
    assert done.returncode == -9
    if step != "between":  # until the next writer puts the old folder back
        assert files(target) == ({"a": "2", "b": "2"} if step == "after" else {"a": "1"})
    with pytest.raises(ZeroDivisionError), atomic_folder(target):
        raise ZeroDivisionError
    assert files(target) == ({"a": "2", "b": "2"} if step == "after" else {"a": "1"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_that_cannot_be_exchanged_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    with pytest.raises(OSError, match="contains folders"), atomic_folder(tmp_path / "out"):
        pass
    monkeypatch.chdir(tmp_path / "out" / "sub")
    with pytest.raises(OSError, match="is the current folder"), atomic_folder("."):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / "file"):
        pass


WINDOWS = """
import sys, pathlib, tempfile, subprocess, ctypes, shutil
sys.platform, sys.modules["fcntl"] = "win32", None
from storyllamas import atomic
folder = pathlib.Path(sys.argv[1])
for text in "ab":
    atomic.write_text(folder / "file", text)
    with atomic.atomic_folder(folder / "folder") as new:
        (new / text).write_text(text)
"""


def test_it_writes_where_folders_have_no_locks(tmp_path: Path) -> None:
    """As on Windows, whose Python has no fcntl and cannot open a folder."""
    subprocess.run([sys.executable, "-c", WINDOWS, tmp_path], cwd=ROOT, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "b"
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["a", "b"]
