"""`make bench-learning`: the table comes from whole stories, and finished runs are kept."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from bench import learning
from storyllamas import params

SETTINGS = {
    "vocab_size": 300,
    "dim": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 2,
    "head_dim": 8,
    "hidden": 16,
    "context": 32,
    "compile": "never",
    "speed_tokens": 8,
    "valid_share": 0.2,
}
STORIES = [f"The {animal} saw a red ball. It was happy." for animal in ("cat", "dog", "hen")] * 30


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = (ROOT / "params.yaml").read_text()
    for name, value in SETTINGS.items():
        *_, last = re.finditer(rf"^  {name}:[^\n#]*", text, re.MULTILINE)
        text = f"{text[: last.start()]}  {name}: {value} {text[last.end() :]}"
    (tmp_path / "params.yaml").write_text(text)
    stories = tmp_path / "stories.txt"
    stories.write_text("\n".join(STORIES))
    monkeypatch.chdir(tmp_path)
    return stories


def run(*options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["learning", *options, "--figure", "figure.png"])
        with pytest.raises(SystemExit) as ended:
            learning.main()
    assert ended.value.code == 0


def test_rows_of_sizes_and_seeds(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--corpus", str(corpus), "--rows", "fast", "--sizes", "2m", "7m", "--seeds", "1"]
    options += ["--tokens", "4096"]
    run(*options)
    table = capsys.readouterr().out.partition("Whole validation stories: 30")[2]
    rows = re.findall(r"^\| (2m|7m) \| recipe fast \| 0.0 \| (\d\.\d{3}) \| (.*?) \|", table, re.M)
    assert [row[0] for row in rows] == ["2m", "7m"]
    assert all(mean == each for _, mean, each in rows)
    assert all(0 < float(mean) < 7 for _, mean, _ in rows)
    assert Path("figure.png").stat().st_size > 1000
    monkeypatch.setattr(learning, "training_run", None)
    run(*options)
    assert capsys.readouterr().out.endswith(table)


def test_a_row_whose_teachers_are_trained_first(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STORYLLAMAS_STATE", str(corpus.parent / "state"))
    options = ["--corpus", str(corpus), "--rows", "distill", "--sizes", "2m", "--seeds", "1"]
    run(*options, "--tokens", "2048")
    printed = capsys.readouterr().out
    assert "teacher 8 of 8: without fold 4/4, seed 2" in printed
    assert re.search(r"^\| 2m \| recipe distill \| 0.0 \| \d\.\d{3} \|", printed, re.MULTILINE)


def test_tokens_of_the_recipe() -> None:
    raw = params.read(ROOT / "params.yaml")
    recipe = learning.params_of("fast", "7m", None, raw).recipe
    assert (recipe.steps, recipe.tokens_per_step) == (8000, 2048)
    assert learning.params_of("fast", "7m", 4096, raw).recipe.steps == 2
    taught = learning.params_of("distill", "7m", 10 * 2048, raw)
    teacher = taught.of_teacher()
    assert teacher
    assert (taught.recipe.steps, teacher.model, teacher.recipe.steps) == (10, "2m", 20)
    whole = learning.params_of("distill", "2m", None, raw).of_teacher()
    assert whole
    assert whole.recipe.steps == 16000
    assert learning.budget("recipe") is None
