"""Plots and words, read from the storybook's text files.

== the lost toy                  a plot begins with its name,
hero: child                      then its cast: each role with the name of its table,
helper: name look                or with the columns of its own table,
    dog; [big|brown]             whose rows are indented

<open hero> {hero} had ...       and, after an empty line, the story's template
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from storyllamas.corpus.storybook.grammar import Grammar, Template

Row = Mapping[str, Template]
Table = Sequence[Row]


@dataclass(frozen=True)
class Plot:
    """A kind of story.

    Attributes:
        name: its name.
        cast: the table of each role, or the name of the table.
        text: its template.
    """

    name: str
    cast: Mapping[str, str | Table]
    text: Template


@dataclass(frozen=True)
class Block:
    """A line `key: value` with the indented rows below it."""

    key: str
    value: str
    rows: list[str]


def read(folder: str) -> str:
    """Return the text of a folder of this package, its files joined in alphabetical order."""
    files = resources.files(__package__).joinpath(folder).iterdir()
    texts = sorted(
        (file for file in files if file.name.endswith(".txt")), key=lambda file: file.name
    )
    return "\n".join(file.read_text("utf-8") for file in texts)


def blocks(text: str) -> list[Block]:
    """Split a text into blocks; empty lines and lines that begin with # are skipped."""
    found: list[Block] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith(" "):
            found[-1].rows.append(line.strip())
        else:
            key, _, value = line.partition(":")
            found.append(Block(key, value.strip(), []))
    return found


def table(grammar: Grammar, block: Block) -> Table:
    """Compile the rows of a block: cells separated by semicolons, columns named by its value.

    Raises:
        ValueError: a row has another number of cells.
    """
    columns = block.value.split()
    rows = [row.split(";") for row in block.rows]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{block.key} has {len(columns)} columns, not {row}")
    return [
        {column: grammar.compile(cell) for column, cell in zip(columns, row, strict=True)}
        for row in rows
    ]


def plots(grammar: Grammar, text: str) -> Iterator[Plot]:
    """Yield the plots in a text."""
    for part in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        name, head, body = (piece.strip("\n") for piece in part.split("\n\n", 2))
        cast = {
            block.key: table(grammar, block) if block.rows else block.value
            for block in blocks(head)
        }
        yield Plot(name, cast, grammar.compile(body))
