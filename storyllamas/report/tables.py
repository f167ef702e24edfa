"""Tables of any nested metrics, and of a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

TITLES = {
    "": "Overall",
    "bits_per_byte": "bits per byte",
    "bos": "BOS",
    "bytes_per_token": "bytes a token",
    "eos_fraction": "share that ends with EOS",
    "flops": "floating-point operations",
    "flops_per_second": "floating-point operations a second",
    "framed_bits_per_byte": "bits per byte, framed",
    "loss": "loss, nats a token",
    "max_relative_logit_error": "largest relative error of logits",
    "parity": "C engine and PyTorch",
    "pytorch": "PyTorch",
    "samples": "sampled stories",
    "text_bytes": "bytes of text",
    "tokens_per_second": "tokens a second",
    "train": "training",
    "train_loss": "training loss, nats a token",
    "train_valid_overlap": "also in validation",
    "valid": "validation",
    "validation_loss": "validation loss, nats a token",
    "vocab_size": "pieces",
}
"""Titles of keys; another key is its own title, with spaces for underscores."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what is shown.
        value: the number as JSON has it, if the cell shows one; else "".
    """

    text: str
    value: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        caption: what it shows.
        head: titles of the columns; empty: a list of names and values, which needs none.
        rows: cells, as many as the head has.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def title(key: str) -> str:
    """Return the title of a key of the metrics."""
    return TITLES.get(key, key.replace("_", " "))


def cell(value: object) -> Cell:
    """Format a value: numbers with all digits that the metrics have."""
    if value is None:
        return Cell("–")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        return Cell(f"{value:,}", str(value))
    if isinstance(value, float):
        return Cell(f"{value:,.6g}", str(value))
    if isinstance(value, list):
        return Cell(", ".join(cell(each).text for each in value) or "–")
    return Cell(str(value))


def pairs(caption: str, values: Mapping[str, Any]) -> Table:
    """Return a table of names and values."""
    return Table(caption, (), [[Cell(title(key)), cell(value)] for key, value in values.items()])


def tables(document: Mapping[str, Any], caption: str = "") -> list[Table]:
    """Return tables of everything in nested metrics.

    Groups that have a key in common are columns of one table. Another group is a table of its own.

    Args:
        document: metrics; a value may be a mapping or a list of mappings.
        caption: title of the values that are in no group; "": "Overall".
    """
    return _walk({caption or title(""): document}, "")


def _walk(groups: Mapping[str, Mapping[str, Any]], parent: str) -> list[Table]:
    """Return the tables of groups by title, then those of the groups inside each."""
    found = []
    for names in _related(groups):
        if len(names) > 1:
            found.append(_matrix(parent, {name: _plain(groups[name]) for name in names}))
        elif plain := _plain(groups[names[0]]):
            found.append(pairs(_join(parent, names[0]), plain))
    for name, group in groups.items():
        inner = {title(key): value for key, value in _nested(group).items()}
        if inner:
            found += _walk(inner, "" if name == TITLES[""] else _join(parent, name))
    return found


def _join(parent: str, name: str) -> str:
    return f"{parent}: {name}" if parent else name


def _nested(group: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the groups in a group; the entries of a list of groups are numbered from 1."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, value in group.items():
        if isinstance(value, Mapping):
            found[key] = value
        elif _is_list_of_groups(value):
            found[key] = {str(number): each for number, each in enumerate(value, 1)}
    return found


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in a group that are no groups."""
    return {
        key: value
        for key, value in group.items()
        if not isinstance(value, Mapping) and not _is_list_of_groups(value)
    }


def _is_list_of_groups(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _related(groups: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return lists of names of groups that have a key in common, in the order of the groups."""
    related: list[tuple[list[str], set[str]]] = []
    for name, group in groups.items():
        names, keys = [name], set(_plain(group))
        for other in [each for each in related if each[1] & keys]:
            related.remove(other)
            names, keys = other[0] + names, keys | other[1]
        related.append((names, keys))
    order = list(groups)
    return sorted(
        (sorted(names, key=order.index) for names, _ in related),
        key=lambda names: order.index(names[0]),
    )


def _matrix(parent: str, groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table with a column for each group; a cell is empty if its group has no such key."""
    keys = list(dict.fromkeys(key for group in groups.values() for key in group))
    rows = [
        [
            Cell(title(key)),
            *(cell(group[key]) if key in group else Cell("") for group in groups.values()),
        ]
        for key in keys
    ]
    return Table(_join(parent, ", ".join(groups)), ["", *groups], rows)


# ---- Markdown ------------------------------------------------------------------------------------


def markdown_tables(page: str) -> list[Table]:
    """Return the tables of a Markdown page; the last headings above each are its caption."""
    found, headings = [], dict[int, str]()
    for is_table, lines in groupby(page.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            head, _, *rows = [_cells(line) for line in lines]
            caption = ": ".join(headings[level] for level in sorted(headings) if level > 1)
            found.append(Table(caption, head, [[Cell(text) for text in row] for row in rows]))
            continue
        for line in lines:
            if match := re.match(r"(#+) (.*)", line):
                level = len(match[1])
                headings = {each: text for each, text in headings.items() if each < level}
                headings[level] = _plain_text(match[2])
    return found


def _cells(line: str) -> list[str]:
    return [_plain_text(text.strip()) for text in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _plain_text(markdown: str) -> str:
    """Return a text without links and escapes."""
    return re.sub(r"!?\[(.*?)\]\(.*?\)", r"\1", markdown).replace(r"\|", "|")
