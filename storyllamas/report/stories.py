"""Stories of every weight file for the same prompts and seeds, with each token's probability."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from storyllamas.engine.engine import Engine
from storyllamas.engine.logprobs import Logprobs
from storyllamas.errors import UserError
from storyllamas.params import Generation
from storyllamas.server.logprobs import TokenTexts

ALTERNATIVES = 5
"""The number of most probable tokens that the page shows for each token."""

CLASSES = (0.9, 0.5, 0.2, 0.05)
"""The smallest probability of each class of tokens; the last class has the rest."""

TYPES = ("f32", "q8", "q4")


@dataclass(frozen=True)
class Alternative:
    """A token that the model could have generated.

    Attributes:
        text: of the token.
        probability: from 0 to 1, at temperature 1.
    """

    text: str
    probability: float


@dataclass(frozen=True)
class Token:
    """A part of a story.

    Attributes:
        text: "" for the end of the story.
        chosen: the generated token with its probability.
        alternatives: the most probable tokens, the most probable first.
    """

    text: str
    chosen: Alternative
    alternatives: Sequence[Alternative]

    @property
    def level(self) -> int:
        """The class of its probability, an index of `CLASSES` or the next one."""
        return sum(self.chosen.probability < smallest for smallest in CLASSES)

    @property
    def space(self) -> str:
        """The space in front of its word, which has no color; "" if there is no word."""
        word = self.text.lstrip()
        return self.text.removesuffix(word) if word else ""

    @property
    def word(self) -> str:
        """The text without `space`."""
        return self.text.removeprefix(self.space)


@dataclass(frozen=True)
class Story:
    """A story of a weight file.

    Attributes:
        model: the name of the weight file, such as "2m f32".
        about: a phrase about the weight file.
        tokens: what the model generated after the prompt.
        result: a phrase about the story.
        problem: a sentence that says why there is no story, or "".
    """

    model: str
    about: str
    tokens: Sequence[Token] = field(default=())
    result: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Prompt:
    """A prompt with its stories.

    Attributes:
        text: the beginning of each story.
        seed: the seed of each story.
        stories: one for each weight file.
    """

    text: str
    seed: int
    stories: Sequence[Story]


def weight_files(root: Path = Path("models")) -> list[Path]:
    """Return the weight files of the workflow, and those that come with the project."""
    return [*root.glob("*/export/*.slm"), *root.glob("pretrained/*.slm")]


def generate(
    paths: Iterable[Path], prompts: Sequence[str], options: Generation, seed: int
) -> list[Prompt]:
    """Generate a story of each weight file for each prompt, as metrics/samples.md has them.

    Args:
        paths: the weight files; the result has the smallest model first.
        prompts: the beginnings.
        options: how to sample.
        seed: of the first prompt's stories; each further prompt has the next seed.

    Raises:
        UserError: a weight file is damaged.
    """
    engines = {path: Engine(path) for path in paths}
    order = sorted(engines, key=lambda path: _rank(path, engines[path]))
    return [
        Prompt(prompt, each, [_story(path, engines[path], prompt, options, each) for path in order])
        for each, prompt in enumerate(prompts, seed)
    ]


def _rank(path: Path, engine: Engine) -> tuple[int, str, int, str]:
    """Rank by parameters, then model, then weight type with the most bits first."""
    kind = TYPES.index(path.stem) if path.stem in TYPES else len(TYPES)
    return engine.info["parameters"], path.parent.as_posix(), kind, path.stem


def _name(path: Path) -> str:
    is_export = path.parent.name == "export"
    return f"{path.parent.parent.name} {path.stem}" if is_export else path.stem


def _story(path: Path, engine: Engine, prompt: str, options: Generation, seed: int) -> Story:
    about = f"{engine.info['parameters']:,} parameters, {engine.info['file_bytes']:,} bytes"
    try:
        tokens, stop = _generate(engine, prompt, options, seed)
    except UserError as error:
        return Story(_name(path), about, problem=f"No story: {error}.")
    nats = -sum(math.log(max(token.chosen.probability, 1e-300)) for token in tokens)
    mean = f", {nats / len(tokens):.2f} nats a token" if tokens else ""
    result = f"{len(tokens)} tokens{mean}, stopped at {stop}"
    return Story(_name(path), about, tokens, result)


def _generate(
    engine: Engine, prompt: str, options: Generation, seed: int
) -> tuple[list[Token], str]:
    """Return the tokens of a story and why it stopped.

    The tokens that together spell one character are one token here: its probability is that of all
    of them, and its alternatives are those of the last.
    """
    texts, tokens, seen = TokenTexts(engine), list[Token](), 0
    story = engine.generate(prompt, seed=seed, logprobs=ALTERNATIVES, **asdict(options))
    for text in story:
        tokens.append(_token(text, story.logprobs[seen:], texts))
        seen = len(story.logprobs)
    if story.logprobs[seen:]:
        tokens.append(_token("", story.logprobs[seen:], texts))
    return tokens, story.stop


def _token(text: str, parts: Sequence[Logprobs], texts: TokenTexts) -> Token:
    last = parts[-1]
    probability = math.exp(sum(part.logprob for part in parts))
    alternatives = [Alternative(texts[id], math.exp(logprob)) for id, logprob in last.top]
    return Token(text, Alternative(texts[last.id], probability), alternatives)


def compact(prompts: Sequence[Prompt]) -> dict[str, list[object]]:
    """Return what the page shows about each token, without repeated texts.

    The value has `texts`, and for each story with tokens a list of tokens: the index of the chosen
    text and its percentage, followed by those of the alternatives.
    """
    texts: dict[str, int] = {}

    def flat(token: Token) -> list[float]:
        shown = (token.chosen, *token.alternatives)
        return [
            number
            for each in shown
            for number in (
                texts.setdefault(each.text, len(texts)),
                float(f"{100 * each.probability:.3g}"),
            )
        ]

    stories: list[object] = [
        [flat(token) for token in story.tokens]
        for prompt in prompts
        for story in prompt.stories
        if not story.problem
    ]
    return {"texts": list(texts), "stories": stories}
