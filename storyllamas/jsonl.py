"""Files of told stories: a JSON object a line, with a bar on the screen while they are told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from rich import progress as bars
from rich.console import Console

from storyllamas.atomic import atomic_file
from storyllamas.engine.batch import ToldStory
from storyllamas.errors import UserError


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, each a prompt; an empty line is an empty prompt."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} in it") from None


def line(story: ToldStory) -> str:
    """A story's JSON object, with the line's end."""
    facts = {
        "index": story.index,
        "seed": story.seed,
        "prompt": story.prompt,
        "text": story.text,
        "tokens": story.tokens,
        "stop": story.stop,
    }
    return json.dumps(facts, ensure_ascii=False) + "\n"


def write(stories: Iterable[ToldStory], total: int, out: Path | None, stdout: BinaryIO) -> None:
    """Write stories to the file `out`, which appears when all are told, or else to stdout.

    What a person is told goes to stderr: a bar if it is a terminal, and a line at the end.

    Args:
        stories: in the order of the lines.
        total: how many there will be.
        out: replaced if it is there; None: stdout, line by line.
        stdout: takes the lines if there is no file.
    """
    told = tokens = 0
    begun = time.monotonic()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    bar = _bar(console)
    try:
        with atomic_file(out) if out else nullcontext(stdout) as file, bar:
            task = bar.add_task("", total=total, rate="…")
            for story in stories:
                file.write(line(story).encode())
                told, tokens = told + 1, tokens + story.tokens
                rate = tokens / (time.monotonic() - begun)
                bar.update(task, completed=told, rate=f"{rate:,.0f}")
    except KeyboardInterrupt:
        what = f"{out} is not written" if out else "the lines so far are whole"
        console.print(f"stopped after {told:,} of {total:,} stories: {what}")
        raise
    seconds = time.monotonic() - begun
    speed = f"{tokens / seconds:,.0f} tokens/s"
    console.print(f"{told:,} stories, {tokens:,} tokens in {seconds:.1f} s, {speed}")


def _bar(console: Console) -> bars.Progress:
    return bars.Progress(
        bars.TextColumn("{task.completed:,}/{task.total:,} stories"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[rate]} tokens/s"),
        bars.TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
