"""Statistics of a corpus as text for a terminal."""

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

from storyllamas.corpus_stats.stats import CharacterCount, CorpusStats, LengthStats, PartStats
from storyllamas.rounding import integer

_BAR = 40
_STORIES_BETWEEN_UPDATES = 500
_EIGHTHS = " ▏▎▍▌▋▊▉"


@contextmanager
def progress(parts: Mapping[str, Iterable[str]]) -> Iterator[dict[str, Iterable[str]]]:
    """Show on stderr how much of each part was read, if stderr is a terminal.

    Yields:
        The parts, with stories that advance the display.
    """
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


def show(found: CorpusStats, console: Console) -> None:
    """Print a summary with a column for each part, then details of the first part."""
    name, first = next(iter(found.parts.items()))
    console.print(_summary(found))
    console.print(_histogram(name, first.words_of_stories))
    console.print(_words(name, first))
    console.print(_beginnings(name, first))
    if first.odd_characters:
        console.print(_characters(name, first))
    for story in first.samples:
        console.print(Panel(Text(story), title="random story", title_align="left"))


def _summary(found: CorpusStats) -> Table:
    parts = found.parts.values()
    columns = (Column(Text(name), justify="right") for name in found.parts)
    table = Table("", *columns, box=None, pad_edge=False)

    row = table.add_row
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
        row(f"{unit} per story, mean", *(f"{each.mean:,.0f}" for each in lengths))
        for share in lengths[0].quantiles:
            row(f"  {_quantile(share)}", *(f"{each.quantiles[share]:,}" for each in lengths))
    row("repeated stories", *(f"{part.duplicates:,}" for part in parts))
    if len(found.parts) > 1:
        *_, other = found.parts
        row(f"stories also in {other}", f"{found.train_valid_overlap:,}")
    row("wrongly decoded stories (â€œ)", *(f"{part.mojibake:,}" for part in parts))
    return table


def _distinct(part: PartStats) -> str:
    return f"{'over ' * part.words_forgotten}{part.distinct_words:,}"


def _quantile(share: str) -> str:
    names = {"0": "shortest", "0.5": "median", "1": "longest"}
    return names.get(share, f"{float(share):.0%} have at most")


def _histogram(name: str, lengths: LengthStats) -> Table:
    table = _table(f"Words per story, {name}")
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    bins = lengths.histogram
    total, highest = sum(count for *_, count in bins), max(count for *_, count in bins)
    for first, last, count in bins:
        table.add_row(f"{first:,} – {last:,}", _bar(count / highest), f"{count / total:.1%}")
    return table


def _bar(share: float) -> str:
    """Draw a bar that is `_BAR` characters wide for a share of 1."""
    whole, eighths = divmod(integer(share * _BAR * 8), 8)
    return "█" * whole + _EIGHTHS[eighths].strip()


def _words(name: str, part: PartStats) -> Text:
    text = Text(f"\nMost frequent words, {name}\n", style="bold")
    words = (f"{word} {count / part.words:.1%}" for word, count in part.frequent_words)
    return text.append(", ".join(words), style="not bold")


def _beginnings(name: str, part: PartStats) -> Table:
    table = _table(f"How stories begin, {name}")
    table.add_column(justify="right")
    table.add_column()
    for beginning, count in part.beginnings:
        table.add_row(f"{count / part.stories:.1%}", Text(beginning))
    return table


def _characters(name: str, part: PartStats) -> Table:
    table = _table(f"Characters beyond ASCII, {name}")
    table.add_column(justify="right")
    table.add_column()
    table.add_column()
    for each in part.odd_characters:
        table.add_row(f"{each.count:,}", each.code, _shown(each))
    return table


def _shown(character: CharacterCount) -> Text:
    """Return the character, if it is printable, and its name."""
    text = f"{character.text} " if character.text.isprintable() else ""
    return Text(text + character.name)


def _table(title: str) -> Table:
    return Table(
        title=f"\n{title}",
        min_width=len(title),
        title_style="bold",
        title_justify="left",
        show_header=False,
        box=None,
        pad_edge=False,
    )
