"""Small training runs, one after the other, in several processes; tests start it and kill ranks."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import safetensors.torch
from training_job import make_job, stop_after

from storyllamas.atomic import write_text
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.params import Compute
from storyllamas.training.distributed import joined
from storyllamas.training.launch import is_rank, launch
from storyllamas.training.loop import training_run

PARENT = os.getppid()


@exit_on_user_error
def main() -> None:
    """Train several jobs in turn; every rank writes its process id and its best weights.

    Arguments: the folder, the number of processes, a JSON object of NAME and changes of the recipe
    (each job trains in folder/NAME), and optionally a step of rank 0 for `stop_after`.
    """
    folder, processes, jobs = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    if processes > 1 and not is_rank():
        launch(processes, sys.argv, PARENT)
        return
    with joined(Compute("cpu", "float32", 1, "never", 1, 1)) as ranks:
        write_text(folder / f"{ranks.rank}.pid", str(os.getpid()))
        for step in sys.argv[4:] if ranks.first else []:
            stop_after(int(step))
        # Ranks that write the same file would disturb each other.
        data = folder / f"data-{ranks.rank}"
        data.mkdir(exist_ok=True)
        for name, changes in jobs.items():
            job = make_job(data, **changes)
            with training_run(job, folder / name, 0, PARENT, ranks=ranks) as result:
                weights = safetensors.torch.save(result.tensors)
                (folder / name).mkdir(exist_ok=True)
                (folder / name / f"{ranks.rank}.safetensors").write_bytes(weights)
        if ranks.world_size > 1:
            with suppress(UserError):
                ranks.check_equal(f"the work of rank {ranks.rank}")
                raise AssertionError("check_equal accepted ranks that differ")


if __name__ == "__main__":
    main()
