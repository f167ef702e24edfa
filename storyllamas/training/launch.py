"""Starting the ranks of a run on this machine, as torchrun does, and watching them.

Import nothing heavy before `launch`: the environment must be set before torch is imported.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from storyllamas.errors import UserError
from storyllamas.training.interrupt import is_orphaned

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

EXIT_RANK_LOST = 75
"""Exit status of a rank that stops because another one has ended."""

RESUME_HINT = (
    "the same command, also with other compute.processes, resumes from the last checkpoint"
)

_RUN_ID = "storyllamas"


def is_rank() -> bool:
    """Return whether torchrun or `launch` started this process as a rank."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_launched() -> bool:
    """Return whether `launch` started this process as a rank."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == _RUN_ID


def forget_single_thread() -> None:
    """Undo torchrun's OMP_NUM_THREADS=1 for several ranks; call it before importing torch.

    A rank cannot know whether the user set OMP_NUM_THREADS=1; `compute.threads` overrides it.
    """
    several = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    if several and not is_launched() and os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]


def launch(processes: int, arguments: Sequence[str], parent: int | None = None) -> None:
    """Run Python with `arguments` as several ranks; return when all have succeeded.

    Args:
        processes: number of ranks, all on this machine.
        arguments: command-line arguments of Python, the same for all ranks.
        parent: id of the process that waits for this one; if that is DVC and it ends, stop.

    Raises:
        UserError: a rank was killed.
        SystemExit: a rank failed and has printed why, or a signal ended this process.
    """
    from torch.distributed.elastic.multiprocessing import (
        DefaultLogsSpecs,
        SignalException,
    )
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # torchrun logs what `_raise_failure` says in one sentence
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=_RUN_ID,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from None
    except ChildFailedError as error:
        _raise_failure(error.failures)


def _raise_failure(failures: Mapping[int, ProcessFailure]) -> None:
    """Raise an error that names the rank that was killed; a rank that failed has printed why."""
    # torchrun sends SIGTERM to the other ranks when one fails.
    culprits = {
        k: v for k, v in failures.items() if v.exitcode not in (EXIT_RANK_LOST, -signal.SIGTERM)
    }
    if not culprits:
        raise UserError(f"the ranks lost each other: {RESUME_HINT}")
    for rank, failure in culprits.items():
        if failure.exitcode < 0:
            raise UserError(
                f"rank {rank} (process {failure.pid}) was killed by {failure.signal_name()}: "
                f"{RESUME_HINT}"
            )
    raise SystemExit(1)


def _end_with_parent(parent: int | None) -> None:
    """Send SIGTERM to this process once `parent` has ended."""
    while not is_orphaned(parent):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
