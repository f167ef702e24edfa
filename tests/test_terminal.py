"""No terminal, and no closed or full output, ends in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import engine_files
import pytest

from storyllamas.errors import exit_on_user_error


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that generates é."""
    path = tmp_path_factory.mktemp("terminal") / "m.slm"
    return engine_files.write_sequence(path, [engine_files.BOS, engine_files.word_id(5)])


def run(
    *arguments: object, encoding: str = "utf-8", redirect: str = ""
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-X", "utf8=0", "-m", "storyllamas", *map(str, arguments)]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    shell = ["sh", "-c", f'exec "$@" {redirect}', "sh", *command]
    return subprocess.run(shell, capture_output=True, env=environment, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_a_terminal_lacks_is_replaced(model: Path, tmp_path: Path, encoding: str) -> None:
    stories = tmp_path / "stories.txt"
    stories.write_text("Once “upon” a time, 日本.\n<|endoftext|>\nA dog.\n", encoding="utf-8")
    for arguments in (
        ["--help"],
        ["generate", "--help"],
        ["generate", "--model", model, "--temperature", 0],
        ["corpus", stories],
        ["info", model],
    ):
        done = run(*arguments, encoding=encoding)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert b"Traceback" not in done.stderr
    text = run("generate", "--model", model, "--temperature", 0, encoding=encoding).stdout
    assert text.decode(encoding).strip() == ("?" if encoding == "ascii" else "é")


def test_closed_output_is_an_error(model: Path, tmp_path: Path) -> None:
    done = run("generate", "--model", model, redirect=">&-")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: standard output is closed: ")
    out = tmp_path / "out.jsonl"
    done = run("generate", "--model", model, "--out", out, redirect=">&-")
    assert done.returncode == 0, done.stderr
    assert len(out.read_text().splitlines()) == 1


def test_closed_input_is_an_error(model: Path) -> None:
    done = run("generate", "--model", model, "--prompt", "-", redirect="<&-")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: standard input is closed: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_output_is_an_error(model: Path) -> None:
    for more in ([], ["--count", 2]):
        done = run("generate", "--model", model, *more, redirect="> /dev/full")
        assert done.returncode == 1
        assert done.stderr.endswith(
            b"error: standard output cannot be used: No space left on device\n"
        )


def test_an_error_without_a_file_name_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(SystemExit, match="a file or connection cannot be used: No space left"):
        exit_on_user_error(fail)()
