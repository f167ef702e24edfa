"""The storybook's template language.

    [a|b|c]        one of the alternatives; an empty one makes a detail optional
    {hero.his}     a slot; {hero.His} begins it with a capital
    <sad hero>     a phrase from the shared pool `sad`; {X} in it stands for the role, if given

A blank line in a template begins a paragraph; all other whitespace becomes one space.
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

    def render(self, context: RenderContext, out: list[str]) -> None:
        """Append the text of this piece to `out`."""


@dataclass
class RenderContext:
    """The state of one story while it is rendered.

    Attributes:
        rng: its source of randomness.
        slots: the text of each slot by name.
        used: pool and index of each phrase so far.
    """

    rng: random.Random
    slots: dict[str, str] = field(default_factory=dict)
    used: set[tuple[str, int]] = field(default_factory=set)

    def below(self, bound: int) -> int:
        """Draw an integer in [0, bound) in a way that is the same in every version of Python."""
        return int(self.rng.random() * bound)


@dataclass(frozen=True)
class Text:
    """A fixed text."""

    words: str

    def render(self, context: RenderContext, out: list[str]) -> None:
        """Append the text."""
        out.append(self.words)


@dataclass(frozen=True)
class Slot:
    """A reference to a slot; `capital` begins its value with a capital."""

    key: str
    capital: bool

    def render(self, context: RenderContext, out: list[str]) -> None:
        """Append the slot's value."""
        value = context.slots[self.key]
        out.append(value[0].upper() + value[1:] if self.capital else value)


@dataclass(frozen=True)
class Template:
    """A sequence of pieces."""

    parts: tuple[Part, ...]

    def render(self, context: RenderContext, out: list[str]) -> None:
        """Append every piece."""
        for part in self.parts:
            part.render(context, out)

    def text(self, context: RenderContext) -> str:
        """Return the text of the template, without polish."""
        out: list[str] = []
        self.render(context, out)
        return "".join(out)


@dataclass(frozen=True)
class Choice:
    """One of several templates with equal probability.

    If the choice is a phrase of a pool, a story uses a phrase a second time only after all others.
    """

    templates: tuple[Template, ...]
    pool: str = ""

    def render(self, context: RenderContext, out: list[str]) -> None:
        """Append one of the templates."""
        count = len(self.templates)
        index = context.below(count)
        if self.pool:
            for _ in range(count):
                if (self.pool, index) not in context.used:
                    break
                index = (index + 1) % count
            context.used.add((self.pool, index))
        self.templates[index].render(context, out)


class Grammar:
    """A compiler of templates, with pools of shared phrases."""

    def __init__(self, phrases: Mapping[str, Sequence[str]]) -> None:
        self._phrases = phrases
        self._compiled: dict[str, Part] = {}

    def compile(self, text: str) -> Template:
        """Compile a template.

        Raises:
            ValueError: brackets do not match.
        """
        paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text.strip()))
        tokens = (token for token in _TOKEN.split("\n".join(paragraphs)) if token)
        return self._alternatives(tokens, text, inside=False)[0]

    def _alternatives(self, tokens: Iterator[str], text: str, inside: bool) -> tuple[Template, ...]:
        """Compile templates separated by bars, up to the closing bracket if `inside` brackets."""
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
        """Compile the phrases of a pool; `call` is the pool's name, and a role if it has one."""
        if call not in self._compiled:
            name, _, role = call.partition(" ")
            lines = [line.replace("{X", f"{{{role}") for line in self._phrases[name]]
            self._compiled[call] = Choice(tuple(map(self.compile, lines)), name)
        return self._compiled[call]


def polish(text: str) -> str:
    """Correct spaces, `a` or `an`, and capitals at the start of sentences."""
    text = re.sub(" {2,}", " ", text)
    text = _SPACE_BEFORE.sub("", text).replace("\n ", "\n").strip()
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE.sub(lambda match: match[1] + match[2].upper(), text)
