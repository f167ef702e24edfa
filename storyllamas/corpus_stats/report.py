"""A survey as a page on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    FileSizeColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from storyllamas.corpus_stats.stats import Character, Measured, Part, Survey

_BAR = 40
_STORIES_BETWEEN_UPDATES = 500
_EIGHTHS = " ▏▎▍▌▋▊▉"


@contextmanager
def progress(parts: Mapping[str, Iterable[str]]) -> Iterator[dict[str, Iterable[str]]]:
    """The parts with a line of what was read of them; without it where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("reading {task.description}"))
    counted = (FileSizeColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    hidden = not console.is_terminal
    with Progress(*columns, *counted, console=console, transient=True, disable=hidden) as bar:

        def watched(name: str, stories: Iterable[str]) -> Iterator[str]:
            task = bar.add_task(name, total=None)
            size = 0
            for number, story in enumerate(stories):
                yield story
                size += len(story)
                if number % _STORIES_BETWEEN_UPDATES == 0:
                    bar.update(task, completed=size)
            bar.update(task, completed=size)
            bar.stop_task(task)

        yield {
            name: stories if hidden else watched(name, stories) for name, stories in parts.items()
        }


def show(survey: Survey, console: Console) -> None:
    """Print everything: a column for each part, and more about the first."""
    name, first = next(iter(survey.parts.items()))
    console.print(_summary(survey))
    console.print(_histogram(name, first.words_of_stories))
    console.print(_words(name, first))
    console.print(_beginnings(name, first))
    if first.odd_characters:
        console.print(_characters(name, first))
    for story in first.samples:
        console.print(Panel(Text(story), title="a story at random", title_align="left"))


def _summary(survey: Survey) -> Table:
    parts = survey.parts.values()
    columns = (Column(Text(name), justify="right") for name in survey.parts)
    table = Table("", *columns, box=None, pad_edge=False)

    def row(what: str, *values: str) -> None:
        table.add_row(what, *values)

    row("stories", *(f"{part.stories:,}" for part in parts))
    row("bytes of text", *(f"{part.text_bytes:,}" for part in parts))
    row("words", *(f"{part.words:,}" for part in parts))
    row("different words", *(_distinct(part) for part in parts))
    for share in next(iter(parts)).words_to_cover:
        label = f"  that make up {float(share):.0%} of the text"
        row(label, *(f"{part.words_to_cover.get(share, 0):,}" for part in parts))
    for unit, lengths in (
        ("bytes", [part.bytes_of_stories for part in parts]),
        ("words", [part.words_of_stories for part in parts]),
    ):
        row(f"{unit} a story, mean", *(f"{each.mean:,.0f}" for each in lengths))
        for share in lengths[0].quantiles:
            row(f"  {_quantile(share)}", *(f"{each.quantiles[share]:,}" for each in lengths))
    row("stories that came before", *(f"{part.duplicates:,}" for part in parts))
    if len(survey.parts) > 1:
        *_, other = survey.parts
        row(f"stories also in {other}", f"{survey.train_valid_overlap:,}")
    row("stories decoded wrongly (â€œ)", *(f"{part.mojibake:,}" for part in parts))
    return table


def _distinct(part: Part) -> str:
    return f"{'over ' * part.words_forgotten}{part.distinct_words:,}"


def _quantile(share: str) -> str:
    names = {"0": "shortest", "0.5": "median", "1": "longest"}
    return names.get(share, f"{float(share):.0%} are at most")


def _histogram(name: str, lengths: Measured) -> Table:
    table = _table(f"Words a story, {name}")
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    bins = lengths.histogram
    total, most = sum(count for *_, count in bins), max(count for *_, count in bins)
    for first, last, count in bins:
        table.add_row(f"{first:,} – {last:,}", _bar(count / most), f"{count / total:.1%}")
    return table


def _bar(share: float) -> str:
    """A bar of `_BAR` characters for 1."""
    whole, eighths = divmod(round(share * _BAR * 8), 8)
    return "█" * whole + _EIGHTHS[eighths].strip()


def _words(name: str, part: Part) -> Text:
    text = Text(f"\nThe most frequent words, {name}\n", style="bold")
    words = (f"{word} {count / part.words:.1%}" for word, count in part.frequent_words)
    return text.append(", ".join(words), style="not bold")


def _beginnings(name: str, part: Part) -> Table:
    table = _table(f"How stories begin, {name}")
    table.add_column(justify="right")
    table.add_column()
    for beginning, count in part.beginnings:
        table.add_row(f"{count / part.stories:.1%}", Text(beginning))
    return table


def _characters(name: str, part: Part) -> Table:
    table = _table(f"Characters beyond ASCII, {name}")
    table.add_column(justify="right")
    table.add_column()
    table.add_column()
    for each in part.odd_characters:
        table.add_row(f"{each.count:,}", each.code, _shown(each))
    return table


def _shown(character: Character) -> Text:
    """The character, where it can be seen, and its name."""
    text = f"{character.text} " if character.text.isprintable() else ""
    return Text(text + character.name)


def _table(title: str) -> Table:
    return Table(
        title=f"\n{title}",
        title_style="bold",
        title_justify="left",
        show_header=False,
        box=None,
        pad_edge=False,
    )
