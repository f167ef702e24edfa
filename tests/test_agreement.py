"""Correlation of measures with a person's scores."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyllamas.errors import UserError
from storyllamas.measures import agreement

VALUE = st.integers(-3, 3)


def plain_rank(values: list[float], value: float) -> float:
    return sum(each < value for each in values) + (sum(each == value for each in values) + 1) / 2


@given(st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=12))
def test_spearman_is_pearsons_correlation_of_ranks(pairs: list[tuple[float, float]]) -> None:
    first, second = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    x, y = ([plain_rank(side, each) for each in side] for side in (first, second))
    n = len(pairs)
    covariance = sum(a * b for a, b in zip(x, y, strict=True)) - sum(x) * sum(y) / n
    variances = [sum(a * a for a in side) - sum(side) ** 2 / n for side in (x, y)]
    found = agreement.spearman(first, second)
    if min(variances) < 1e-9:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(covariance / math.sqrt(variances[0] * variances[1]))


def test_spearman_without_ties() -> None:
    """1 - 6 Σd² / (n (n² - 1))."""
    assert agreement.spearman([1, 2, 3, 4, 5], [1, 3, 2, 5, 4]) == pytest.approx(1 - 6 * 4 / 120)


def write(path: Path, *rows: dict[str, object]) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(completion: str, *scores: object, category: str = "Plot", model: str = "m") -> dict:
    names = [f"{category}_{letter}_score" for letter in "AB"]
    texts = {"category": category, "prompt": "p", "completion": completion, "model_name": model}
    return texts | {"Plot_A_score": "", "Plot_B_score": ""} | dict(zip(names, scores, strict=False))


def test_scores_of_a_category_are_averaged(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", row("a<|endoftext|>b", 1, 0), row("c", 0.5, ""), row("d"))
    first, second = agreement.read(path)
    assert (first.score, second.score) == (0.5, 0.5)
    assert (first.story.completion, first.story.stop) == ("a", "eos")
    assert (second.story.completion, second.story.stop) == ("c", "max_tokens")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has no column category"),
        ("category,prompt,completion,model_name\nPlot,a,b,c\n", "has no scores"),
        ("category,prompt,completion,model_name,Plot_A_score\nPlot,a,b,c,x\n", "is not a number"),
        ("\udcff", "is not CSV in UTF-8"),
    ],
)
def test_a_wrong_file_is_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        agreement.read(tmp_path / "s.csv")
    with pytest.raises(UserError, match="does not exist"):
        agreement.read(tmp_path / "other.csv")


def test_the_table_begins_with_the_strongest_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stories of other models and categories are not references of BLEU."""
    groups: list[int] = []

    def count(stories: list[object]) -> list[float]:
        groups.append(len(stories))
        return [0.0] * len(stories)

    measures = {"flat": count, "length": lambda stories: [len(s.completion) for s in stories]}
    monkeypatch.setattr(agreement, "MEASURES", {"family": measures})
    rows = [row("a b c"[:n], 5 - n, model="m" if n < 4 else "n") for n in range(1, 6)]
    scored = agreement.read(write(tmp_path / "s.csv", *rows))
    (tmp_path / "train.txt").write_text("a b c")
    values, notes = agreement.measure(scored, tmp_path / "train.txt")
    assert groups == [3, 2]
    assert values["nearest_rouge_2"] == pytest.approx([0, 0, 2 / 3, 2 / 3, 1])
    assert notes == []
    lines = agreement.table(agreement.correlations(scored, values)).splitlines()
    assert lines[:3] == ["| measure | Plot |", "|---|---|", "| `length` | **−1.00** |"]
    assert "| `flat` | – |" in lines


def test_the_command_prints_the_table_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(stories: list[object]) -> list[float]:
        raise UserError("sacrebleu is not installed")

    monkeypatch.setattr(agreement, "MEASURES", {"family": {"self_bleu": missing}})
    rows = [row("a", 1), row("a b", 2), row("a", 3, model="n")]
    path = str(write(tmp_path / "s.csv", *rows))
    for words, code in ((["--model", "m", path], 0), (["--model", "o", path], 1)):
        monkeypatch.setattr("sys.argv", ["agreement", *words])
        with pytest.raises(SystemExit) as raised:
            agreement.main()
        assert bool(raised.value.code) == code
    assert "has no model o: use one of m, n" in str(raised.value.code)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| `words` | **1.00** |",
        "self_bleu is left out: sacrebleu is not installed",
    ]
