"""The table of vocabulary sizes, compared with tokenizers trained one by one."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from conftest import ROOT
from rich.console import Console

from storyllamas import params, tokenizer
from storyllamas.corpus import files
from storyllamas.corpus_stats import vocab_table
from storyllamas.model import Llama

NAMES = ("Lily", "Tom", "Zoé", "Benjamin", "Mia")
STORIES = [
    f"{NAMES[i % 5]} had {i} red {'balls' if i % 3 else 'kites'}.\nShe played all day with them."
    for i in range(200)
]
HELD_OUT = ["Tom had a red kite.", "Mia played with the balls all day."]
MODELS = {name: params.load(ROOT / "params.yaml").model_config_of(name) for name in ("2m", "30m")}


@pytest.fixture(scope="module")
def rows() -> list[vocab_table.Row]:
    return vocab_table.table([260, 300, 340, 5000], STORIES, HELD_OUT, MODELS)


def test_rows_equal_tokenizers_trained_one_by_one(rows: list[vocab_table.Row]) -> None:
    assert [(row.vocab_size, row.kind) for row in rows] == [
        (size, kind) for size in (260, 300, 340, 5000) for kind in ("sentencepiece", "byte_level")
    ]
    for row in rows[2:6]:
        trained = tokenizer.from_bytes(tokenizer.train(STORIES, row.vocab_size, kind=row.kind))
        tokens = sum(len(trained.encode(story)) for story in HELD_OUT)
        text_bytes = len("".join(HELD_OUT).encode())
        assert row.bytes_per_token == pytest.approx(text_bytes / tokens, abs=1e-4)
        assert row.tokens_per_story == pytest.approx(tokens / 2, abs=0.06)
        assert row.seconds is not None
        assert row.possible is None


def test_shares_are_those_of_the_models(rows: list[vocab_table.Row]) -> None:
    model = Llama(MODELS["2m"])
    embedding = model.embedding.weight.numel()
    others = sum(parameter.numel() for parameter in model.parameters()) - embedding
    scaled = embedding / MODELS["2m"].vocab_size * 300
    for row in rows[2:4]:
        assert row.embedding_share["2m"] == pytest.approx(scaled / (scaled + others), abs=1e-4)
        assert row.embedding_share["30m"] < row.embedding_share["2m"]


def test_an_impossible_size_names_the_nearest_possible_one(rows: list[vocab_table.Row]) -> None:
    impossible = [rows[0], *rows[-2:]]
    for row in impossible:
        assert row.bytes_per_token is None
        tokenizer.train(STORIES, row.possible, kind=row.kind)
    text = io.StringIO()
    chosen = replace(params.load(ROOT / "params.yaml").tokenizer, vocab_size=340)
    vocab_table.show(rows, chosen, Console(file=text, width=100))
    assert re.search(r"→ 340 +sentencepiece", text.getvalue())
    assert re.search(r"\n +340 +byte_level", text.getvalue())
    for row, bound in zip(impossible, ("at least", "at most", "at most"), strict=True):
        allowed = f"this corpus allows {bound} {row.possible:,}"
        assert f"{row.vocab_size:,} {row.kind}: {allowed}" in text.getvalue()


def test_the_report_describes_the_current_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "data/corpus"
    corpus.mkdir(parents=True)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for name, stories in (("train", STORIES), ("valid", HELD_OUT)):
        with (corpus / f"{name}.txt").open("wb") as file:
            files.write(file, stories)
    output = subprocess.run(
        [sys.executable, "-m", "storyllamas.corpus_stats.vocab_table"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "→ 4,096" in output
    report = json.loads((tmp_path / "metrics/vocabulary.json").read_text())
    assert [(row["vocab_size"], row["kind"]) for row in report["vocabularies"]] == list(
        product(vocab_table.SIZES, vocab_table.KINDS)
    )
    assert report["held_out_bytes"] == len("".join(HELD_OUT).encode())
    assert (tmp_path / "metrics/vocabulary.png").read_bytes().startswith(b"\x89PNG")
