"""The storybook's template language.

    [a|b|c]        one of the alternatives; an empty one makes a detail optional
    {hero.his}     a slot; {hero.His} says it with a capital
    <sad hero>     a phrase of the shared pool, whose {X} stands for the role given, if any

A blank line in a template begins a paragraph; all other white space is one space.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

_TOKEN = re.compile(r"([\[\]|]|\{[^}]*\}|<[^>]*>)")
_ARTICLE = re.compile(r"\b([Aa]) (?=(?!one\b|use|uni|eu)[aeiouAEIOU]|hour|honest)")
_SPACE_BEFORE = re.compile(r" +(?=[.,!?\n])")
_SENTENCE = re.compile(r'((?:^|[.!?] |\." |\n)"?)([a-z])')


class Part(Protocol):
    """A piece of a compiled template."""

    def tell(self, teller: Teller, out: list[str]) -> None:
        """Append what this piece says to `out`."""


@dataclass
class Teller:
    """What one story knows while it is told: its random source, its slots, phrases said so far."""

    rng: random.Random
    slots: dict[str, str] = field(default_factory=dict)
    said: set[tuple[str, int]] = field(default_factory=set)

    def below(self, bound: int) -> int:
        """A whole number in [0, bound), the same on every Python version."""
        return int(self.rng.random() * bound)


@dataclass(frozen=True)
class Text:
    """Words that are always the same."""

    words: str

    def tell(self, teller: Teller, out: list[str]) -> None:
        """Say the words."""
        out.append(self.words)


@dataclass(frozen=True)
class Slot:
    """The place of something that the story has decided."""

    key: str
    capital: bool

    def tell(self, teller: Teller, out: list[str]) -> None:
        """Say the slot's value."""
        value = teller.slots[self.key]
        out.append(value[0].upper() + value[1:] if self.capital else value)


@dataclass(frozen=True)
class Template:
    """Pieces told one after the other."""

    parts: tuple[Part, ...]

    def tell(self, teller: Teller, out: list[str]) -> None:
        """Say every piece."""
        for part in self.parts:
            part.tell(teller, out)

    def text(self, teller: Teller) -> str:
        """What the template says, as it comes: for names and properties."""
        out: list[str] = []
        self.tell(teller, out)
        return "".join(out)


@dataclass(frozen=True)
class Choice:
    """One of several templates, each as likely; a story prefers what it has not said yet."""

    templates: tuple[Template, ...]
    pool: str = ""

    def tell(self, teller: Teller, out: list[str]) -> None:
        """Say one of the templates."""
        count = len(self.templates)
        index = teller.below(count)
        if self.pool:
            for _ in range(count):
                if (self.pool, index) not in teller.said:
                    break
                index = (index + 1) % count
            teller.said.add((self.pool, index))
        self.templates[index].tell(teller, out)


class Grammar:
    """Compiles templates, with a pool of shared phrases to draw on."""

    def __init__(self, phrases: Mapping[str, Sequence[str]]) -> None:
        self._phrases = phrases
        self._compiled: dict[str, Part] = {}

    def compile(self, text: str) -> Template:
        """The template for `text`; raises ValueError where brackets do not match."""
        paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text.strip()))
        tokens = (token for token in _TOKEN.split("\n".join(paragraphs)) if token)
        return self._alternatives(tokens, text, inside=False)[0]

    def _alternatives(self, tokens: Iterator[str], text: str, inside: bool) -> tuple[Template, ...]:
        """Templates separated by bars, up to the closing bracket where `inside` brackets."""
        templates: list[Template] = []
        parts: list[Part] = []
        for token in tokens:
            if token == "[":
                parts.append(Choice(self._alternatives(tokens, text, inside=True)))
            elif token == "|" and inside:
                templates.append(Template(tuple(parts)))
                parts = []
            elif token == "]" and inside:
                return (*templates, Template(tuple(parts)))
            elif token in ("|", "]"):
                raise ValueError(f"a {token} outside brackets in {text!r}")
            else:
                parts.append(self._part(token))
        if inside:
            raise ValueError(f"a bracket is not closed in {text!r}")
        return (Template(tuple(parts)),)

    def _part(self, token: str) -> Part:
        if token[0] == "{":
            role, _, attribute = token[1:-1].rpartition(".")
            capital = attribute[0].isupper()
            attribute = attribute[0].lower() + attribute[1:]
            return Slot(f"{role}.{attribute}" if role else attribute, capital)
        if token[0] == "<":
            return self._phrase(token[1:-1])
        return Text(token)

    def _phrase(self, call: str) -> Part:
        """The pool that `call`, a name with or without a role, speaks of."""
        if call not in self._compiled:
            name, _, role = call.partition(" ")
            lines = [line.replace("{X", f"{{{role}") for line in self._phrases[name]]
            self._compiled[call] = Choice(tuple(map(self.compile, lines)), name)
        return self._compiled[call]


def polish(text: str) -> str:
    """Tidy what a template said: spaces, `a` or `an`, a capital where a sentence begins."""
    text = re.sub(" {2,}", " ", text)
    text = _SPACE_BEFORE.sub("", text).replace("\n ", "\n").strip()
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE.sub(lambda match: match[1] + match[2].upper(), text)
