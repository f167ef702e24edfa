"""Evaluation of a model: loss, bits per byte, agreement of C and PyTorch, speed, sample stories.

Stories are framed as in training: BOS, text, EOS. A loss is the mean over all predicted tokens,
EOS included. Bits per byte count the tokens of the text only, divided by the UTF-8 bytes of the
text, so that models with different tokenizers compare. Of a record, a prompt and its response, only
the response counts.

PyTorch is imported where the engine is compared with it, so that `score` works without it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from storyllamas.bits_per_byte import bits_per_byte
from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.instruct import Record, missing_words, prompt_ids, response_text
from storyllamas.measures.story import Story

if TYPE_CHECKING:
    from storyllamas.model import Llama
    from storyllamas.params import Generation

SPEED_RUNS = 5
"""Number of stories in a measurement of the engine's speed."""

_TITLE_CHARACTERS = 80
"""Characters of a prompt in the heading of its story."""


@dataclass(frozen=True)
class Score:
    """Metrics of how well a model predicts stories.

    Attributes:
        loss: nats per token.
        perplexity: exp(loss).
        bits_per_byte: see `bits_per_byte.bits_per_byte`.
    """

    loss: float
    perplexity: float
    bits_per_byte: float


def score(engine: Engine, stories: Sequence[str | Record]) -> Score:
    """Score stories, or the responses of records, with the C engine, on two threads.

    Raises:
        UserError: the model has no BOS or no EOS.
    """
    if min(engine.bos_id, engine.eos_id) < 0:
        raise UserError("the model has no BOS or no EOS piece: evaluate a model that has both")
    with ThreadPoolExecutor(2) as pool:
        scored = list(pool.map(lambda story: _log_probabilities(engine, story), stories))
    loss = -sum(logs.sum() for logs, _ in scored) / sum(len(logs) for logs, _ in scored)
    text_bytes = sum(len(_predicted(story).encode()) for story in stories)
    nats = -sum(logs[is_text].sum() for logs, is_text in scored)
    return Score(float(loss), math.exp(loss), bits_per_byte(float(nats), text_bytes))


def _predicted(story: str | Record) -> str:
    return story if isinstance(story, str) else story.response


def _framed(engine: Engine, story: str | Record) -> tuple[list[int], int]:
    """Return the ids of a story as in training, and the number of those that are given."""
    if isinstance(story, str):
        return [engine.bos_id, *engine.encode(story), engine.eos_id], 1
    return story.ids(engine.encode, engine.bos_id, engine.eos_id)


def _log_probabilities(
    engine: Engine, story: str | Record
) -> tuple[
    np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.bool_]]
]:
    """Return the natural log-probability of each predicted token, and a mask of text tokens.

    Both are [tokens].
    """
    ids, given = _framed(engine, story)
    logs = np.concatenate([engine.score(window) for window in _windows(ids, engine.context)])
    return logs[given - 1 :], np.array(ids[given:]) != engine.eos_id


def _windows(ids: list[int], context: int) -> Iterator[list[int]]:
    """Cut ids into windows that predict each token once; neighbours share one token."""
    for start in range(0, len(ids) - 1, context):
        yield ids[start : start + context + 1]


@dataclass(frozen=True)
class Parity:
    """Metrics of how far the C engine differs from PyTorch.

    Attributes:
        max_relative_logit_error: largest difference of two logits, divided by the largest logit.
        greedy_agreement: share of the prompts whose greedy continuations have the same tokens.
    """

    max_relative_logit_error: float
    greedy_agreement: float


def _pytorch_logits(model: Llama, ids: list[int]) -> npt.NDArray[np.float32]:
    """Return PyTorch's logits [n, vocab_size] of the token after each of n ids."""
    import torch

    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.tensor([ids]))[0].numpy()
    return logits


def parity(
    engine: Engine, model: Llama, stories: Sequence[str | Record], prompts: Sequence[str]
) -> Parity:
    """Compare the logits on stories and the greedy continuations of prompts."""
    bos_id, eos_id = engine.bos_id, engine.eos_id
    differences = []
    for story in stories:
        ids = _framed(engine, story)[0][:-1][: model.config.context]
        expected = _pytorch_logits(model, ids)
        difference = np.abs(engine.logits(ids) - expected).max()
        differences.append(float(difference / np.abs(expected).max()))
    equal = []
    for text in prompts:
        prompt = [bos_id, *engine.encode(text)]
        equal.append(engine.greedy(prompt) == greedy(model, prompt, (bos_id, eos_id)))
    return Parity(max(differences), sum(equal) / len(equal))


def greedy(model: Llama, prompt: list[int], ends: tuple[int, ...]) -> list[int]:
    """Generate the greedy continuation with PyTorch, up to one of `ends` or a full context."""
    ids = list(prompt)
    while len(ids) < model.config.context:
        following = int(_pytorch_logits(model, ids)[-1].argmax())
        if following in ends:
            break
        ids.append(following)
    return ids[len(prompt) :]


def engine_speed(engine: Engine, tokens: int) -> float:
    """Return the median tokens per second of `SPEED_RUNS` stories of at most `tokens` tokens."""

    def story_speed(seed: int) -> float:
        begun = time.perf_counter()
        story = engine.generate("", temperature=1.0, seed=seed, max_tokens=tokens)
        _exhaust(story)
        return story.tokens / (time.perf_counter() - begun)

    return statistics.median(story_speed(seed) for seed in range(SPEED_RUNS))


def _exhaust(story: Iterable[str]) -> None:
    for _ in story:
        pass


def pytorch_speed(model: Llama, prompt: list[int], tokens: int) -> float:
    """Return tokens per second of a naive PyTorch loop, which recomputes all positions."""
    ids = list(prompt)
    begun = time.perf_counter()
    for _ in range(tokens):
        ids.append(int(_pytorch_logits(model, ids)[-1].argmax()))
    return tokens / (time.perf_counter() - begun)


def sample(
    engine: Engine, prompts: Sequence[str], generation: Generation, seed: int
) -> list[Story]:
    """Sample a story for each prompt, in batches; story i has the seed `seed + i`."""
    stories = engine.generate_many(prompts, seed=seed, **asdict(generation))
    return [Story(each.prompt, each.text[len(each.prompt) :], each.stop) for each in stories]


def respond(
    engine: Engine, prompts: Sequence[str], generation: Generation, seed: int
) -> list[Story]:
    """Sample a response to the prompt of each record, as `sample` does for stories.

    Each is a story without a prompt, since the prompt is no beginning of it.
    """
    ids = [prompt_ids(prompt, engine.encode, engine.bos_id) for prompt in prompts]
    stories = engine.generate_many(ids, seed=seed, **asdict(generation))
    return [Story("", response_text(each.text), each.stop) for each in stories]


def words_fraction(prompts: Sequence[str], stories: Sequence[Story]) -> float:
    """Return the share of responses that have all words of the prompt's line `Words`."""
    pairs = zip(prompts, stories, strict=True)
    return statistics.fmean(not missing_words(prompt, each.completion) for prompt, each in pairs)


def fitting(engine: Engine, prompts: Sequence[str]) -> list[str]:
    """Return the prompts that leave room in the context for a token."""
    return [prompt for prompt in prompts if len(engine.encode(prompt)) + 1 < engine.context]


def samples_page(
    size: str,
    stories: Sequence[Story],
    seed: int,
    measures: Mapping[str, Mapping[str, float]],
    prompts: Sequence[str] = (),
) -> str:
    """Format measures and sample stories as a Markdown page.

    Args:
        size: the name of the model's size.
        stories: the stories; story i has the seed `seed + i`.
        seed: the seed of the first story.
        measures: value of each measure by family and name.
        prompts: the prompts of responses, for their headings; empty: each story has its own.
    """
    lines = [f"# Stories by the {size} model", "", "| measure | value |", "|---|---|"]
    for family, values in measures.items():
        lines += [f"| {family}: `{name}` | {value:.4g} |" for name, value in values.items()]
    lines.append("")
    for index, story in enumerate(stories):
        quoted = [f"> {line}" if line else ">" for line in story.text.splitlines()]
        lines += [
            f"## {_title(prompts[index] if prompts else story.prompt)}",
            "",
            *quoted,
            "",
            f"Seed {seed + index}, stopped at {story.stop}.",
            "",
        ]
    return "\n".join(lines)


def _title(prompt: str) -> str:
    """Return a prompt as a heading: on one line, its end if it is long."""
    if not prompt:
        return "No prompt"
    line = " ".join(prompt.split())
    return f"“{line}”" if len(line) <= _TITLE_CHARACTERS else f"“… {line[-_TITLE_CHARACTERS:]}”"
