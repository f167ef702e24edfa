"""Starting the ranks of a run on this machine, as torchrun does, and watching over them.

Nothing heavy is imported before `launch`, so that the environment can still be seen to.
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
from storyllamas.training.interrupt import orphaned

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

# What a rank exits with that stops because another one is gone.
LOST = 75
GO_ON = "the same command goes on from the last checkpoint, also with another number of processes"

_RUN_ID = "storyllamas"


def started() -> bool:
    """Whether this process is a rank that torchrun or `launch` started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launched() -> bool:
    """Whether this process is a rank that `launch` started."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == _RUN_ID


def forget_single_thread() -> None:
    """Undo that torchrun gives each of several ranks one thread; call it before torch is imported.

    A user's own OMP_NUM_THREADS=1 looks the same to a rank: `compute.threads` says it for certain.
    """
    several = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    if several and not launched() and os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]


def launch(processes: int, arguments: Sequence[str], parent: int | None = None) -> None:
    """Run Python with `arguments` as that many ranks; return when all have ended well.

    Args:
        processes: ranks on this machine.
        arguments: of Python, the same for all.
        parent: the process that waits for this one; where that is DVC and it is gone, stop.

    Raises:
        UserError: a rank was killed.
        SystemExit: a rank ended badly and has said why, or this process was told to end.
    """
    from torch.distributed.elastic.multiprocessing import (
        DefaultLogsSpecs,
        SignalException,
    )
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # torchrun's own, of what is said below in one sentence
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
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
        _explain(error.failures)


def _explain(failures: Mapping[int, ProcessFailure]) -> None:
    """Say which rank was killed; one that failed has said so itself."""
    # Those that are left over when one ends badly are sent SIGTERM.
    culprits = {k: v for k, v in failures.items() if v.exitcode not in (LOST, -signal.SIGTERM)}
    if not culprits:
        raise UserError(f"the ranks lost each other: {GO_ON}")
    for rank, failure in culprits.items():
        if failure.exitcode < 0:
            raise UserError(
                f"rank {rank} (process {failure.pid}) was ended by {failure.signal_name()}: {GO_ON}"
            )
    raise SystemExit(1)


def _end_with(parent: int | None) -> None:
    """Ask this process to end once nobody waits for it."""
    while not orphaned(parent):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
