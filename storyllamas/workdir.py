"""The folder for work in progress, since DVC deletes the outputs of a stage before it runs."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

FINISHED = "finished"
"""Name of the file that marks the folder of a finished run."""


def root() -> Path:
    """Return the folder `$STORYLLAMAS_STATE`, or `.storyllamas` in the working directory."""
    return Path(os.environ.get("STORYLLAMAS_STATE") or ".storyllamas")


def project() -> Path:
    """Return the state folder that DVC's temporary workspaces in .dvc/tmp share with their project.

    It holds what does not belong to a single run, such as compiled code.
    """
    state = root().absolute()
    projects = [parent.parent for parent in state.parents if parent.name == ".dvc"]
    return projects[0] / ".storyllamas" if projects else state


def runs() -> Path:
    """Return the folder that has a folder of checkpoints for each training run."""
    return root() / "runs"


def remove_finished_runs() -> None:
    """Remove the checkpoints of finished runs; call it when DVC has noted their results."""
    for marker in runs().glob(f"*/{FINISHED}"):
        shutil.rmtree(marker.parent, ignore_errors=True)


@contextmanager
def locked(path: Path, holder: str) -> Iterator[None]:
    """Hold a lock while the body runs; the lock of a killed process is released.

    Args:
        path: the lock file; it and its folder are created if missing. The holder of the lock may
            remove both.
        holder: a phrase that names the process to wait for, for the message.
    """
    with _open_locked(path, holder):
        yield


def _open_locked(path: Path, holder: str) -> IO[str]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            file = path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for {holder} ({path})", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            # If the last holder removed the file, this lock is on a deleted file: try again.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
