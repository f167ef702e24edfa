"""What a person sees of a run: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta

from rich import progress as bars
from rich.console import Console


class Progress:
    """Step, loss, validation loss, tokens a second and time left."""

    def __init__(self, steps: int, done: int) -> None:
        console = Console()
        self._live = console.is_terminal
        self._steps, self._first = steps, done
        self._bar = bars.Progress(
            bars.TextColumn("step {task.completed}/{task.total}"),
            bars.BarColumn(),
            bars.TextColumn("loss {task.fields[loss]}  validation {task.fields[validation]}"),
            bars.TextColumn("{task.fields[rate]} tokens/s"),
            bars.TimeRemainingColumn(compact=True),
            console=console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(
            "", total=steps, completed=done, loss="…", validation="…", rate="…"
        )
        self._begun = time.monotonic()
        self._validation: float | None = None

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def validated(self, loss: float) -> None:
        """Take note of a validation loss; shown with the next step."""
        self._validation = loss
        self._bar.update(self._task, validation=f"{loss:.3f}")

    def advance(self, step: int, loss: float, tokens: int) -> None:
        """Show a finished step, with the tokens learned from since the start of this process."""
        seconds = time.monotonic() - self._begun
        rate = f"{tokens / seconds:,.0f}"
        self._bar.update(self._task, completed=step, loss=f"{loss:.3f}", rate=rate)
        if self._validation is not None and not self._live:
            left = seconds / (step - self._first) * (self._steps - step)
            print(
                f"step {step}/{self._steps}  loss {loss:.3f}  validation {self._validation:.3f}  "
                f"{rate} tokens/s  {timedelta(seconds=round(left))} left",
                flush=True,
            )
        self._validation = None
