"""Strikes the system calls with which checkpoints and results are written; needs c/faults.c.

Run with that library preloaded, in a folder of its own. Each stroke falls on a child process.
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
from training_job import make_state, train

from storyllamas.training.checkpoints import KEPT, RunFolder, State

library = ctypes.CDLL(None)
library.fault_arm.argtypes = [ctypes.c_long, ctypes.c_int]
NEVER = 0


def in_child(work: Callable[[], object], at: int, error: int = 0) -> tuple[int, int]:
    """Do the work in a child, struck at a call: the signal that ended it, and its exit status.

    The status of an unharmed child is the number of its calls, at most 255.
    """
    child = os.fork()
    if child == 0:
        library.fault_arm(at, error)
        with contextlib.suppress(OSError):
            work()
        os._exit(min(255, library.fault_calls()))
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status), os.WEXITSTATUS(status)


def state(step: int) -> State:
    return make_state(step, 30_000)


def check(folder: RunFolder, steps: tuple[int, ...]) -> None:
    """The newest state is whole and of one of the steps, and the next one is kept as ever."""
    with folder.locked():
        latest = folder.latest()
        assert latest is not None
        assert latest.step in steps, latest.step
        expected = state(latest.step)
        assert latest.notes == expected.notes
        assert all(torch.equal(latest.tensors[k], v) for k, v in expected.tensors.items())
        assert not list(folder.path.glob(".*"))
        folder.save(state(5))
    kept = sorted(file.name for file in folder.path.glob("*.safetensors"))
    assert len(kept) == KEPT, kept
    assert kept[-1] == "000000005.safetensors"


def strike_every_call_of_a_save(root: Path) -> None:
    def prepared(name: str) -> RunFolder:
        folder = RunFolder(root / name)
        for step in (1, 2, 3):
            folder.save(state(step))
        return folder

    folder = prepared("unharmed")
    ended, calls = in_child(lambda: folder.save(state(4)), NEVER)
    assert (ended, calls > 8) == (0, True), (ended, calls)
    for at in range(1, calls + 1):
        folder = prepared(f"kill-{at}")
        ended, _ = in_child(lambda folder=folder: folder.save(state(4)), at)
        assert ended == signal.SIGKILL, (at, ended)
        check(folder, (3, 4))
        folder = prepared(f"full-{at}")
        ended, _ = in_child(lambda folder=folder: folder.save(state(4)), at, errno.ENOSPC)
        assert ended == 0, (at, ended)
        check(folder, (3, 4))
    print(f"{calls} calls of a save")


def damage_newest_state() -> None:
    states = sorted(Path(os.environ["STORYLLAMAS_STATE"]).glob("runs/*/*.safetensors"))
    if len(states) > 1:
        data = bytearray(states[-1].read_bytes())
        data[len(data) // 2] ^= 1
        states[-1].write_bytes(data)


def strike_a_run_again_and_again(folder: Path) -> None:
    draw = random.Random(0)
    ends = []
    for attempt in range(10):
        ends.append(in_child(lambda: train(folder), draw.randrange(1, 250))[0])
        if attempt % 3 == 0:
            damage_newest_state()
    assert ends.count(signal.SIGKILL) >= 6, ends
    ended, calls = in_child(lambda: train(folder), NEVER)
    assert (ended, calls > 8) == (0, True), (ended, calls)
    print(f"killed {ends.count(signal.SIGKILL)} times")


if __name__ == "__main__":
    torch.set_num_threads(1)
    strike_every_call_of_a_save(Path(sys.argv[1]) / "saves")
    strike_a_run_again_and_again(Path(sys.argv[1]))
