"""Train a recipe on random tokens until a signal: `python -m bench.plan_worker PARAMS FOLDER`.

PARAMS is the content of params.yaml in JSON. The file `started` appears in FOLDER when the first
step begins.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.train import random_token_file
from storyllamas import params, token_file
from storyllamas.errors import exit_on_user_error
from storyllamas.training import device, loop
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.job import Job


@exit_on_user_error
def main() -> None:
    """Train."""
    chosen, folder = params.parse(json.loads(sys.argv[1])), Path(sys.argv[2])
    config = chosen.model_config()
    data = token_file.read(random_token_file(config.vocab_size))
    where = device.choose(chosen.compute, chosen.training_flops)
    job = Job(config, chosen.recipe, chosen.seed, data, data, where)
    begin = Interrupt.__enter__

    def enter(interrupt: Interrupt) -> Interrupt:
        (folder / "started").touch()
        return begin(interrupt)

    Interrupt.__enter__ = enter  # type: ignore[method-assign]
    seconds = chosen.compute.checkpoint_seconds
    with loop.training_run(job, folder / "logs", seconds):
        pass


if __name__ == "__main__":
    main()
