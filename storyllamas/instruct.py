"""Instructions: records of a prompt and a response, such as those of TinyStories-Instruct.

A record of a corpus is text: the prompt, a line that begins with `Story:`, and the response. As
tokens it is BOS, prompt, BOS, response, EOS, so that a response begins as a story without a prompt
does. Everything that makes a prompt or a record is in this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from storyllamas.errors import UserError

RESPONSE = "Story:"
"""What begins the line after the prompt of a record."""

CHAT_TEMPLATE = "{{ bos_token }}{{ messages[-1]['content'] }}{{ bos_token }}"
"""The chat template of a model that was trained on records; each turn is a prompt."""

DIALOGUE = "Dialogue"
"""The feature of a story with direct speech."""

BAD_ENDING = "BadEnding"
"""The feature of a story that ends badly."""

ENDINGS = {"happy": "", "sad": BAD_ENDING}
"""The feature of each ending that a user may ask for; a happy one has none."""

_LABELS = ("Features", "Words", "Summary", "Random sentence")
_LINE = re.compile(rf"({'|'.join(_LABELS)}):[ \t]*(.*)")
_RESPONSE_LINE = re.compile(rf"^{RESPONSE}", re.MULTILINE)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Record:
    """A prompt and its response.

    Attributes:
        prompt: what the model is given; it may be empty, and no line of it begins with `Story:`.
        response: what the model is to write, not empty.
    """

    prompt: str
    response: str

    @property
    def text(self) -> str:
        """The record as the text of a corpus file."""
        return "\n".join([*filter(None, [self.prompt]), RESPONSE, self.response])

    def ids(
        self, encode: Callable[[str], Sequence[int]], bos_id: int, eos_id: int
    ) -> tuple[list[int], int]:
        """Return the tokens of the record, and how many of them belong to the prompt."""
        prompt = prompt_ids(self.prompt, encode, bos_id)
        return [*prompt, *encode(self.response), eos_id], len(prompt)


def prompt_ids(prompt: str, encode: Callable[[str], Sequence[int]], bos_id: int) -> list[int]:
    """Return the tokens that a response continues: BOS, prompt, BOS."""
    return [bos_id, *encode(prompt), bos_id]


def response_text(generated: str) -> str:
    """Return a generated response without the space that SentencePiece puts in front of it."""
    return generated.removeprefix(" ")


def parse(text: str) -> Record | None:
    """Return the record in a text; None if it has no line `Story:` or nothing after it.

    If every line of the prompt has a label of TinyStories-Instruct, their order becomes that of
    `prompt`. Any other prompt stays as it is.
    """
    match = _RESPONSE_LINE.search(text)
    if not match or not (response := text[match.end() :].strip()):
        return None
    given = text[: match.start()].strip()
    lines = [_LINE.fullmatch(line.strip()) for line in given.split("\n") if line.strip()]
    if all(lines):
        ordered = sorted((line for line in lines if line), key=lambda line: _rank(line[1]))
        given = "\n".join(f"{line[1]}: {line[2]}" for line in ordered if line[2])
    return Record(given, response)


def pair(prompt: str, response: str) -> Record:
    """Return the record of a user's own prompt and response.

    Raises:
        ValueError: one of them is empty or has what separates records; the message says which.
    """
    record = Record(_trimmed(prompt), _trimmed(response))
    for name, value in (("prompt", record.prompt), ("response", record.response)):
        if not value:
            raise ValueError(f'an empty "{name}"')
        if "<|endoftext|>" in value:
            raise ValueError(f'<|endoftext|> in "{name}", which separates records')
    if _RESPONSE_LINE.search(record.prompt):
        raise ValueError(f'a line of "prompt" that begins with {RESPONSE}, as responses do')
    return record


def prompt(words: Sequence[str] = (), features: Iterable[str] = (), summary: str = "") -> str:
    """Return the prompt of a story with these words, features and summary; each may be empty."""
    values = (", ".join(filter(None, features)), ", ".join(words), summary)
    labelled = zip(_LABELS, values, strict=False)
    return "\n".join(f"{label}: {value}" for label, value in labelled if value)


def asked(words: str | None, ending: str | None) -> str:
    """Return the prompt of the options --words and --ending.

    Args:
        words: words separated by commas; None: any.
        ending: a key of `ENDINGS`; None: any.

    Raises:
        UserError: there is no word among `words`, or one has a line break.
    """
    chosen = [" ".join(word.split()) for word in (words or "").split(",")]
    chosen = [word for word in chosen if word]
    if words is not None and not chosen:
        raise UserError(f'the words are {words!r}: name some, such as "dragon, cake, sad"')
    return prompt(chosen, [ENDINGS[ending]] if ending else [])


def check_template(template: str, model: object) -> None:
    """Check that a model was trained on records.

    Args:
        template: its chat template, which says so.
        model: its name, for the message.

    Raises:
        UserError: it was not.
    """
    if template != CHAT_TEMPLATE:
        raise UserError(
            f"{model} was not trained to follow --words and --ending: train a model with "
            "corpus.kind=instruct, or use --prompt"
        )


def missing_words(prompt: str, story: str) -> list[str]:
    """Return the words of a prompt's line `Words` that do not occur in a story, in any case."""
    lines = [_LINE.fullmatch(line) for line in prompt.split("\n")]
    asked = ", ".join(line[2] for line in lines if line and line[1] == "Words").split(", ")
    found = f" {' '.join(_WORD.findall(story.lower()))} "
    return [word for word in asked if word and f" {word.lower()} " not in found]


def _rank(label: str) -> int:
    return _LABELS.index(label)


def _trimmed(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()
