"""Kills, full disks and damaged checkpoints leave the result of a run bit-identical."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import training_job
from conftest import PATIENCE, wait_until_stopped
from training_job import make_job

from storyllamas import workdir
from storyllamas.training.loop import training_run

TESTS = Path(__file__).parent
RESULTS = ("model/model.safetensors", "logs/steps.csv", "logs/validation.csv")

pytestmark = pytest.mark.usefixtures("state_root")

ENVIRONMENT = {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}


# The processes that train are forked from one that has imported what takes seconds to import.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch._dynamo", "storyllamas.training.loop"])


def train_forked(output: Connection, environment: dict[str, str], arguments: list[str]) -> None:
    """Do in a forked process what training_job.py does as a program."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["training_job.py", *arguments]
    training_job.main()


class Forked:
    """A forked process that trains; its methods are those of `Popen`."""

    def __init__(self, arguments: list[str]) -> None:
        self._reader, writer = FORKS.Pipe(duplex=False)
        given = (writer, os.environ | ENVIRONMENT, arguments)
        self._process = FORKS.Process(target=train_forked, args=given)
        self._process.start()
        writer.close()
        assert self._process.pid
        self.pid = self._process.pid
        self.stdout = open(self._reader.fileno(), closefd=False)  # noqa: SIM115

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, None]:
        self._process.join(timeout)
        assert self.returncode is not None, "it hangs"
        return self.stdout.read(), None


Process = Forked | subprocess.Popen[str]


def start(folder: Path, within: Sequence[str] = (), stop: int = 0) -> Process:
    """Start the job in a folder, in a program of its own if prefixed by the command `within`.

    With `stop`, return when it has stopped itself after that step or a later one.
    """
    folder.mkdir(exist_ok=True)
    arguments = [str(folder), *([str(stop)] if stop else [])]
    process: Process
    if within:
        process = subprocess.Popen(
            [*within, sys.executable, TESTS / "training_job.py", *arguments],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    else:
        process = Forked(arguments)
    if stop:
        wait_until_stopped(process.pid)
    return process


def finish(process: Process) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    return output


def results(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in RESULTS]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORYLLAMAS_STATE", str(folder / "state"))
        process = start(folder)
    output = finish(process)
    assert process.returncode == 0, output
    assert not list(folder.glob("state/runs/*/*.safetensors"))
    return results(folder)


def test_a_killed_run_resumes_bit_identically(
    tmp_path: Path, state_root: Path, unbroken: list[bytes]
) -> None:
    for step in (2, 21):
        process = start(tmp_path, stop=step)
        process.kill()
        process.communicate()
    process = start(tmp_path)
    output = finish(process)
    assert process.returncode == 0, output
    assert "resuming from step 21 of 40" in output
    assert results(tmp_path) == unbroken
    assert not list(state_root.glob("runs/*"))


def test_a_finished_run_is_not_lost_before_dvc_notes_it(
    tmp_path: Path, state_root: Path, unbroken: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with its last checkpoint or with its result, the run does not train again."""
    monkeypatch.setenv("DVC_STAGE", "train@2m")
    process = start(tmp_path, stop=40)
    process.kill()
    process.communicate()
    for _ in range(2):
        output = finish(start(tmp_path))
        assert output == "resuming from step 40 of 40\n"
        assert results(tmp_path) == unbroken
        shutil.rmtree(tmp_path / "model")  # as DVC does before it runs a stage
        shutil.rmtree(tmp_path / "logs")
    assert len(list(state_root.glob("runs/*/*.safetensors"))) == 2
    workdir.remove_finished_runs()
    assert not list(state_root.glob("runs/*"))


def test_a_finished_run_saves_its_last_step_for_dvc(
    tmp_path: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run of another job removes the checkpoint, which DVC has noted by then."""
    monkeypatch.setenv("DVC_STAGE", "train@2m")
    for seed in (1, 2):
        job = dataclasses.replace(make_job(tmp_path, steps=3), seed=seed)
        with training_run(job, tmp_path / "logs", 1e9):
            pass
        (file,) = state_root.glob("runs/*/*.safetensors")
        assert file.parent.name == job.key()
        assert file.name == "000000003.safetensors"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_says_how_to_resume(
    tmp_path: Path, unbroken: list[bytes], number: signal.Signals
) -> None:
    process = start(tmp_path, stop=6)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    output = finish(process)
    assert process.returncode == 128 + number
    assert "the same command resumes from step" in output
    assert "Traceback" not in output
    if number == signal.SIGINT:
        finish(start(tmp_path))
        assert results(tmp_path) == unbroken


def test_a_closed_terminal_leaves_a_checkpoint(
    tmp_path: Path, state_root: Path, unbroken: list[bytes]
) -> None:
    """The run is the session's leader, to which the kernel sends SIGHUP."""
    terminal, ours = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, TESTS / "training_job.py", tmp_path, "6"],
        env=os.environ | ENVIRONMENT,
        stdin=ours,
        stdout=ours,
        stderr=ours,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(ours)
    wait_until_stopped(process.pid)
    os.close(terminal)
    process.send_signal(signal.SIGCONT)
    assert process.wait(PATIENCE) == 128 + signal.SIGHUP
    (newest,) = sorted(state_root.glob("runs/*/*.safetensors"))[-1:]
    assert int(newest.stem) >= 6
    assert "resuming from step" in finish(start(tmp_path))
    assert results(tmp_path) == unbroken


def test_nohup_keeps_the_run(tmp_path: Path, unbroken: list[bytes]) -> None:
    process = start(tmp_path, ["nohup"], stop=6)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGCONT)
    finish(process)
    assert process.returncode == 0
    assert results(tmp_path) == unbroken


def test_a_second_process_waits_for_the_first(tmp_path: Path, unbroken: list[bytes]) -> None:
    first = start(tmp_path, stop=1)
    second = start(tmp_path)
    assert second.stdout is not None
    assert "waiting for the process" in second.stdout.readline()
    first.kill()
    first.communicate()
    finish(second)
    assert results(tmp_path) == unbroken


@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library as Linux does")
def test_a_run_with_faults_at_system_calls_and_damage_is_bit_identical(
    tmp_path: Path, state_root: Path, unbroken: list[bytes]
) -> None:
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip("no C compiler")
    library = tmp_path / "faults.so"
    source = TESTS / "c" / "faults.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, TESTS / "faults.py", tmp_path],
        env=os.environ | ENVIRONMENT | {"LD_PRELOAD": str(library)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    assert "is damaged: use the one before it\nresuming from step" in done.stdout
    assert results(tmp_path) == unbroken
    assert not list(state_root.glob("runs/*"))
    assert not list(tmp_path.glob("**/.*.tmp"))


def disk(folder: Path, options: str) -> list[str]:
    """Return a command prefix that mounts a small file system in a folder for the command."""
    folder.mkdir(parents=True)
    script = 'mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, options, str(folder)]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file systems can be mounted here")
    return command


def test_a_run_finishes_without_checkpoints(
    tmp_path: Path, state_root: Path, unbroken: list[bytes]
) -> None:
    process = start(tmp_path, disk(state_root, "size=100k"))
    output = finish(process)
    assert process.returncode == 0, output
    (warning,) = [line for line in output.splitlines() if "checkpoint" in line]
    assert warning.startswith("no checkpoint of step 1, there is none yet: ")
    assert " needs 0.2 MB and has 0.1 MB free (No space left on device)" in warning
    assert results(tmp_path) == unbroken


def test_a_result_on_a_full_disk_is_not_lost(tmp_path: Path, unbroken: list[bytes]) -> None:
    process = start(tmp_path, disk(tmp_path / "model", "size=20k"))
    output = finish(process)
    assert process.returncode == 1
    assert output.splitlines()[-1] == (
        f"error: {tmp_path}/model/model.safetensors cannot be written (No space left on device): "
        "solve that, then the same command resumes from step 40"
    )
    output = finish(start(tmp_path))
    assert "resuming from step 40 of 40" in output
    assert results(tmp_path) == unbroken


def test_a_read_only_folder_is_an_error_at_once(tmp_path: Path, state_root: Path) -> None:
    process = start(tmp_path, disk(state_root, "ro"))
    (sentence,) = finish(process).splitlines()
    assert process.returncode == 1
    assert sentence.startswith(f"error: checkpoints cannot be saved in {state_root}/runs/")
    assert "(Read-only file system): make it writable, or name another folder in" in sentence
