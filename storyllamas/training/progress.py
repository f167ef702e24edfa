"""Progress of a run: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import suppress
from datetime import timedelta

from rich import progress as bars
from rich.console import Console

from storyllamas.rounding import integer
from storyllamas.training.metrics import memory_bytes

RECENT_STEPS = 50
"""Least number of steps over which the speed is averaged."""

LINE_SECONDS = 60
"""Outside a terminal, a line follows each validation, and the last line after this time."""


class Progress:
    """Step, losses, time left, tokens a second and memory; a narrow terminal cuts the last."""

    def __init__(
        self, steps: int, done: int, tokens_per_step: int, device: str, eval_every: int
    ) -> None:
        """Show a run of `steps`, of which `done` are taken.

        Args:
            steps: of the whole run.
            done: steps taken.
            tokens_per_step: tokens in a step.
            device: cpu, cuda or mps.
            eval_every: steps between validations. The speed is that of a multiple of them, so that
                it has their share of the time, after each validation too.
        """
        console = Console()
        self._live = console.is_terminal
        self._steps, self._tokens, self._device = steps, tokens_per_step, device
        self._bar = bars.Progress(
            bars.TextColumn("step {task.completed}/{task.total}"),
            bars.BarColumn(bar_width=None),
            bars.TextColumn("{task.fields[values]}"),
            console=console,
            disable=not self._live,
            expand=True,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, values="")
        now = time.monotonic()
        recent = eval_every * math.ceil(RECENT_STEPS / eval_every)
        self._start = now, done
        self._recent: deque[tuple[float, int]] = deque(maxlen=recent)
        self._printed_at = now
        self._validation: float | None = None
        self._validated = False

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def set_validation_loss(self, loss: float) -> None:
        """Show this validation loss from the next step on."""
        self._validation, self._validated = loss, True

    def advance(self, step: int, loss: float) -> None:
        """Show a finished step."""
        now = time.monotonic()
        # Only the first step, which may have compiled, counts from the start.
        started, first = self._recent[0] if self._recent else self._start
        self._recent.append((now, step))
        seconds = (now - started) / (step - first)
        left = timedelta(seconds=integer(seconds * (self._steps - step)))
        validation = "" if self._validation is None else f"  validation {self._validation:.3f}"
        values = (
            f"loss {loss:.3f}{validation}  {left} left  "
            f"{self._tokens / seconds:,.0f} tokens/s  {memory_bytes(self._device) / 1e9:.1f} GB"
        )
        with suppress(OSError):  # of a closed terminal
            self._bar.update(self._task, completed=step, values=values)
            if not self._live and (self._validated or now - self._printed_at >= LINE_SECONDS):
                print(f"step {step}/{self._steps}  {values}", flush=True)
                self._printed_at = now
        self._validated = False
