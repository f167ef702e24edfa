"""The log of a run for TensorBoard, where that is installed: `pip install -e '.[watch]'`."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storyllamas.training.csv_log import Row

FLUSH_SECONDS = 5


class TensorBoardLog:
    """The rows of a run's logs, and its speed, in a folder that `tensorboard --logdir` draws.

    Without the package or a folder, do nothing. A disk that refuses to write stops this log, not
    the run.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        """Open the log after `step`; points of later steps from an earlier process are hidden."""
        self._writer: Any = None
        self._previous: tuple[float, float] | None = None
        if folder and importlib.util.find_spec("tensorboard"):
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(
                    str(folder), purge_step=step + 1, flush_secs=FLUSH_SECONDS
                )
            except (ImportError, OSError) as error:
                self._stop(error)

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._writer:
                self._writer.close()
        except OSError as error:
            self._stop(error)

    def log_step(self, row: Row) -> None:
        """Add a row of steps.csv, and the tokens a second since the row before it."""
        now = time.monotonic(), row["tokens"]
        speed = {}
        if self._previous:
            seconds, tokens = (b - a for a, b in zip(self._previous, now, strict=True))
            speed["tokens_per_second"] = tokens / seconds
        self._previous = now
        self._add(row, "train", speed)

    def log_validation(self, row: Row) -> None:
        """Add a row of validation.csv."""
        self._add(row, "validation")

    def _add(self, row: Row, kind: str, speed: Mapping[str, float] | None = None) -> None:
        """Add each value of a row but its axes; both kinds have a loss, which share a chart."""
        values = {k: v for k, v in row.items() if k not in ("step", "tokens")} | dict(speed or {})
        try:
            for name, value in values.items():
                if self._writer:
                    tag = f"{name}/{kind}" if name == "loss" else name
                    self._writer.add_scalar(tag, value, row["step"])
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError | ImportError) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"the TensorBoard log stops: {reason}", flush=True)
        self._writer = None
