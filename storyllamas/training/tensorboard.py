"""A run's log for TensorBoard, where that is installed: `pip install -e '.[watch]'`."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storyllamas.training.csv_log import Row

FLUSH_SECONDS = 5


class Scalars:
    """Loss, learning rate, gradient norm and speed in a folder that `tensorboard --logdir` draws.

    Without the package or a folder it does nothing. A disk that refuses them ends them, not the
    run.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        """Go on after a step: what an earlier process wrote of later ones is not shown."""
        self._writer: Any = None
        self._before: tuple[float, float] | None = None
        if folder and importlib.util.find_spec("tensorboard"):
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(
                    str(folder), purge_step=step + 1, flush_secs=FLUSH_SECONDS
                )
            except (ImportError, OSError) as error:
                self._give_up(error)

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._writer:
                self._writer.close()
        except OSError as error:
            self._give_up(error)

    def log_step(self, row: Row) -> None:
        """Add a row of steps.csv, and the tokens a second since the last one."""
        now = time.monotonic(), row["tokens"]
        values = {
            "loss/train": row["loss"],
            "learning_rate": row["learning_rate"],
            "gradient_norm": row["gradient_norm"],
        }
        if self._before:
            seconds, tokens = (b - a for a, b in zip(self._before, now, strict=True))
            values["tokens_per_second"] = tokens / seconds
        self._before = now
        self._add(row["step"], values)

    def log_validation(self, row: Row) -> None:
        """Add a row of validation.csv."""
        self._add(row["step"], {"loss/validation": row["loss"]})

    def _add(self, step: float, values: Mapping[str, float]) -> None:
        try:
            for name, value in values.items():
                if self._writer:
                    self._writer.add_scalar(name, value, step)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError | ImportError) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"no more scalars for TensorBoard: {reason}", flush=True)
        self._writer = None
