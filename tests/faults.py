"""Kill a process, or make a call fail, at each system call that writes checkpoints and results.

    LD_PRELOAD=faults.so python tests/faults.py FOLDER

faults.so is c/faults.c. Each fault is in a child process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from training_job import make_checkpoint, train

from storyllamas.training.checkpoints import MAX_CHECKPOINTS, Checkpoint, CheckpointFolder

library = ctypes.CDLL(None)
library.fault_arm.argtypes = [ctypes.c_long, ctypes.c_int]
NEVER = 0


def in_child(work: Callable[[], object], at: int, error: int = 0) -> tuple[int, int]:
    """Call `work` in a child with a fault at call number `at`; return its signal and exit status.

    Without a fault (`NEVER`) the status is the number of calls, at most 255. The fault is SIGKILL,
    or the error number `error`.
    """
    child = os.fork()
    if child == 0:
        library.fault_arm(at, error)
        with contextlib.suppress(OSError):
            work()
        os._exit(min(255, library.fault_calls()))
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status), os.WEXITSTATUS(status)


def big_checkpoint(step: int) -> Checkpoint:
    return make_checkpoint(step, 30_000)


def check(folder: CheckpointFolder, steps: tuple[int, ...]) -> None:
    """Check that the newest checkpoint is intact and of one of `steps`, and that saving works."""
    with folder.locked():
        latest = folder.latest()
        assert latest is not None
        assert latest.step in steps, latest.step
        expected = big_checkpoint(latest.step)
        assert latest.metadata == expected.metadata
        assert all(torch.equal(latest.tensors[k], v) for k, v in expected.tensors.items())
        assert not list(folder.path.glob(".*"))
        folder.save(big_checkpoint(5))
    names = sorted(file.name for file in folder.path.glob("*.safetensors"))
    assert len(names) == MAX_CHECKPOINTS, names
    assert names[-1] == "000000005.safetensors"


def fail_every_call_of_a_save(root: Path) -> None:
    def prepared(name: str) -> CheckpointFolder:
        folder = CheckpointFolder(root / name)
        for step in (1, 2, 3):
            folder.save(big_checkpoint(step))
        return folder

    folder = prepared("without-fault")
    ended, calls = in_child(lambda: folder.save(big_checkpoint(4)), NEVER)
    assert (ended, calls > 8) == (0, True), (ended, calls)
    for at in range(1, calls + 1):
        folder = prepared(f"kill-{at}")
        ended, _ = in_child(lambda folder=folder: folder.save(big_checkpoint(4)), at)
        assert ended == signal.SIGKILL, (at, ended)
        check(folder, (3, 4))
        folder = prepared(f"full-{at}")
        ended, _ = in_child(lambda folder=folder: folder.save(big_checkpoint(4)), at, errno.ENOSPC)
        assert ended == 0, (at, ended)
        check(folder, (3, 4))
    print(f"{calls} calls of a save")


def damage_newest_checkpoint() -> None:
    files = sorted(Path(os.environ["STORYLLAMAS_STATE"]).glob("runs/*/*.safetensors"))
    if len(files) > 1:
        data = bytearray(files[-1].read_bytes())
        data[len(data) // 2] ^= 1
        files[-1].write_bytes(data)


def kill_a_run_repeatedly(folder: Path) -> None:
    generator = random.Random(0)
    signals = []
    for attempt in range(10):
        signals.append(in_child(lambda: train(folder), generator.randrange(1, 250))[0])
        if attempt % 3 == 0:
            damage_newest_checkpoint()
    assert signals.count(signal.SIGKILL) >= 6, signals
    ended, calls = in_child(lambda: train(folder), NEVER)
    assert (ended, calls > 8) == (0, True), (ended, calls)
    print(f"killed {signals.count(signal.SIGKILL)} times")


if __name__ == "__main__":
    torch.set_num_threads(1)
    fail_every_call_of_a_save(Path(sys.argv[1]) / "saves")
    kill_a_run_repeatedly(Path(sys.argv[1]))
