"""Metrics of the evaluation, compared with PyTorch's cross-entropy and with counting by hand."""

from __future__ import annotations

import importlib
import math
import shutil
from pathlib import Path

import engine_files
import numpy as np
import pytest
import torch
from conftest import ROOT

from storyllamas import evaluation
from storyllamas.engine.engine import Engine
from storyllamas.measures.story import Story
from storyllamas.model import Llama
from storyllamas.params import Generation

STORIES = [
    "a b ab",
    "é and so on, far beyond what a context of forty tokens can hold, at last",
    "z",
]
HOW = Generation(temperature=1.0, top_p=0.9, max_tokens=12)


@pytest.fixture(scope="module", params=["sentencepiece", "byte_level"])
def pair(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Engine, Llama]:
    """Return the same random model in C and in PyTorch, with a tokenizer of each kind."""
    path = tmp_path_factory.mktemp("evaluation") / "m.slm"
    model = engine_files.random_model(path, request.param, STORIES)
    return Engine(path), model


def test_loss_and_bits_per_byte(pair: tuple[Engine, Llama]) -> None:
    engine, model = pair
    framed = [[engine.bos_id, *engine.encode(story), engine.eos_id] for story in STORIES]
    assert max(map(len, framed)) > model.config.context + 1
    each = [engine_files.cross_entropies(model, ids) for ids in framed]
    score = evaluation.score(engine, STORIES)
    assert score.loss == pytest.approx(np.concatenate(each).mean(), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    of_text = sum(values[:-1].sum() for values in each)
    text_bytes = sum(len(story.encode()) for story in STORIES)
    assert score.bits_per_byte == pytest.approx(of_text / math.log(2) / text_bytes, rel=1e-5)


def test_parity_sees_another_model(pair: tuple[Engine, Llama]) -> None:
    engine, model = pair
    same = evaluation.parity(engine, model, STORIES, ["a", ""])
    assert same.max_relative_logit_error < 1e-5
    assert same.greedy_agreement == 1
    torch.manual_seed(0)
    other = evaluation.parity(engine, Llama(model.config).eval(), STORIES, ["a", ""])
    assert other.max_relative_logit_error > 0.5
    assert other.greedy_agreement < 1


def test_samples_are_generated_from_their_seeds(pair: tuple[Engine, Llama]) -> None:
    engine, _ = pair
    generated = evaluation.sample(engine, ["a b", "a b", ""], HOW, seed=5)
    assert generated == evaluation.sample(engine, ["a b", "a b", ""], HOW, seed=5)
    assert generated[0] != generated[1]
    assert generated[1] == evaluation.sample(engine, ["a b"], HOW, seed=6)[0]
    assert generated[0].text.startswith("a b")
    assert {story.stop for story in generated} <= {"eos", "bos", "max_tokens"}


def test_prompts_that_fill_the_context_do_not_fit(pair: tuple[Engine, Llama]) -> None:
    engine, _ = pair
    longest = "a" * (engine.context - 2)
    while len(engine.encode(longest)) > engine.context - 2:
        longest = longest[:-1]
    while len(engine.encode(longest + "a")) <= engine.context - 2:
        longest += "a"
    assert evaluation.fitting(engine, ["", longest, longest + "a"]) == ["", longest]
    (story,) = evaluation.sample(engine, [longest], HOW, seed=1)
    assert story.stop


def test_the_page_has_the_measures_and_quotes_every_line() -> None:
    stories = [Story("Once", "\n\nx", "eos"), Story("", " y", "max_tokens")]
    long = Story("One day. " * 20, "z", "eos")
    measures = {"diversity": {"distinct_3": 0.61234}}
    page = evaluation.samples_page("2m", [*stories, long], 7, measures)
    assert "| diversity: `distinct_3` | 0.6123 |\n\n## " in page
    assert "## “Once”\n\n> Once\n>\n> x\n\nSeed 7, stopped at eos.\n" in page
    assert "## No prompt\n\n> y\n\nSeed 8, stopped at max_tokens.\n" in page
    assert f"## “… {('One day. ' * 20).strip()[-80:]}”\n" in page


def test_speeds_are_positive(pair: tuple[Engine, Llama], tmp_path: Path) -> None:
    engine, model = pair
    assert evaluation.engine_speed(engine, 8) > 0
    assert evaluation.pytorch_speed(model, [engine.bos_id], 4) > 0


def test_the_stage_needs_a_weight_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    evaluate = importlib.import_module("stages.evaluate")
    with pytest.raises(SystemExit, match="models/2m/export has no weight file: run `dvc repro"):
        evaluate.main()
