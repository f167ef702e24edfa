"""JSON lines of generated stories, with a progress bar while they are generated."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from storyllamas.atomic import atomic_file
from storyllamas.engine.batch import GeneratedStory
from storyllamas.errors import DAMAGED, UserError


def read_stories(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the prompt and the completion of each story in a file that `write` wrote.

    Empty lines are skipped. A line without a prompt is a story that was generated without one.

    Raises:
        UserError: the file is missing, or a line is not a story.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if not text.isspace():
                    yield _parts(text, f"line {number} of {path}")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: write stories with `storyllamas generate --out`"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): convert it to UTF-8") from None


def _parts(text: str, name: str) -> tuple[str, str]:
    """Return the prompt and the completion of a line, which `name` describes."""
    try:
        facts = json.loads(text)
        prompt, whole = facts.get("prompt", ""), facts["text"]
        is_story = whole.startswith(prompt)
        whole.encode()  # Half of a surrogate pair is no text.
    except DAMAGED:
        is_story = False
    if not is_story:
        raise UserError(
            f"{name} is not a story: give a file that `storyllamas generate --out` wrote, with a "
            "text that begins with its prompt"
        )
    return prompt, whole[len(prompt) :]


def line(story: GeneratedStory) -> str:
    """Format a story as a JSON object and a line break."""
    facts = {
        "index": story.index,
        "seed": story.seed,
        "prompt": story.prompt,
        "text": story.text,
        "tokens": story.tokens,
        "stop": story.stop,
    }
    return json.dumps(facts, ensure_ascii=False) + "\n"


def write(
    stories: Iterable[GeneratedStory], total: int, out: Path | None, stdout: BinaryIO
) -> None:
    """Write stories to the file `out`, which appears when all are finished, or else to stdout.

    A progress bar and a summary go to stderr; the bar needs a terminal and the package rich.

    Args:
        stories: in the order of the lines.
        total: the number of stories.
        out: the file, which is replaced if it exists; None: stdout, line by line.
        stdout: takes the lines if there is no file.
    """
    finished = tokens = 0
    begun = time.monotonic()
    try:
        with atomic_file(out) if out else nullcontext(stdout) as file, _bar(total) as show:
            for story in stories:
                file.write(line(story).encode())
                finished, tokens = finished + 1, tokens + story.tokens
                show(finished, tokens / (time.monotonic() - begun))
    except KeyboardInterrupt:
        what = f"{out} is not written" if out else "every printed line is complete"
        _note(f"stopped after {finished:,} of {total:,} stories: {what}")
        raise
    seconds = time.monotonic() - begun
    speed = f"{tokens / seconds:,.0f} tokens/s"
    _note(f"{finished:,} stories, {tokens:,} tokens in {seconds:.1f} s, {speed}")


def _note(text: str) -> None:
    if sys.stderr:
        print(text, file=sys.stderr)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int, float], None]]:
    """Yield a function that shows the number of finished stories and the tokens per second."""
    if not (sys.stderr and sys.stderr.isatty() and find_spec("rich")):
        yield lambda finished, rate: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.completed:,}/{task.total:,} stories"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[rate]} tokens/s"),
        bars.TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with bars.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, rate="…")
        yield lambda finished, rate: bar.update(task, completed=finished, rate=f"{rate:,.0f}")
