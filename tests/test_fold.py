"""Folds: their parts of a text, and batches that leave one out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from training_job import DIGEST, make_job, make_tokens

from stages.train import read_text
from storyllamas import params, token_file
from storyllamas.errors import UserError
from storyllamas.fold import Fold
from storyllamas.token_file import TokenFile


@pytest.mark.parametrize("text", ["", "3", "0/8", "9/8", "1/1", "-1/3", "1/ 3", "1/3/4", "a/b"])
def test_what_is_no_fold(text: str) -> None:
    with pytest.raises(ValueError, match="is not a fold such as 3/8"):
        Fold.parse(text)


@given(lengths=st.lists(st.integers(1, 30), min_size=2, max_size=40), data=st.data())
def test_folds_are_equal_parts_that_make_the_whole(lengths: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.integers(2, len(lengths)))
    beginnings = np.cumsum([0, *lengths[:-1]])
    folds = [Fold.parse(f"{number}/{parts}") for number in range(1, parts + 1)]
    ranges = [fold.tokens(beginnings, sum(lengths)) for fold in folds]
    assert [ranges[0][0], *(end for _, end in ranges)] == [
        *(first for first, _ in ranges),
        sum(lengths),
    ]
    stories = [np.isin(beginnings, range(*edges)).sum() for edges in ranges]
    assert max(stories) - min(stories) <= 1


@given(
    context=st.integers(1, 20),
    lengths=st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100)),
    seed=st.integers(0, 99),
)
def test_an_epoch_has_each_token_once_but_those_held_out(
    context: int, lengths: tuple[int, int, int], seed: int
) -> None:
    before, out, after = lengths
    tokens = np.arange(sum(lengths), dtype=np.uint16)
    file = TokenFile(Path("numbered"), tokens, 65536, 1, 1, DIGEST, False, (before, before + out))
    if before + after <= context:
        with pytest.raises(UserError, match="fewer than one window"):
            file.batch(0, 1, context, seed)
        return
    windows = max(1, (before + after - context) // context)
    inputs, targets = file.batch(1, windows, context, seed)
    assert (file.places(1, windows, context, seed) == inputs).all()
    kept = np.delete(tokens, slice(before, before + out))
    # Positions among the tokens that are kept: windows have no gap, and cover all but the ends.
    at, following = (np.searchsorted(kept, ids) for ids in (inputs, targets))
    assert (kept[at] == inputs).all()
    assert (kept[following] == targets).all()
    assert (following == at + 1).all()
    assert (np.diff(at, axis=1) == 1).all()
    assert len(np.unique(targets)) == targets.size > len(kept) - 2 * context - 1


def test_rows_of_records_leave_out_a_fold(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with token_file.write(tmp_path / "a.bin", 300, DIGEST, records=True) as writer:
        for _ in range(60):
            sizes = random.integers(1, 9, 2)
            prompt, response = (random.integers(3, 300, size) for size in sizes)
            writer.append(np.array([1, *prompt, 1, *response, 2], np.uint16), 1, 9)
    whole = token_file.read(tmp_path / "a.bin")
    file = whole.hold_out(Fold(2, 3))
    first, end = file.held_out
    assert 0 < first < end < len(file.tokens)
    rows = file.rows(24)
    assert 0 < len(rows.starts) < len(whole.rows(24).starts)
    assert ((rows.starts + rows.lengths <= first) | (rows.starts >= end)).all()
    places = file.places(0, len(rows.starts), 24, 1)
    assert sorted(places[:, 0].tolist()) == rows.starts.tolist()


def test_a_fold_that_is_in_every_window_is_rejected(tmp_path: Path) -> None:
    with token_file.write(tmp_path / "a.bin", 300, DIGEST, records=True) as writer:
        for _ in range(4):
            writer.append(np.array([1, 5, 1, 6, 2], np.uint16), 1, 1)
    file = token_file.read(tmp_path / "a.bin")
    assert len(file.rows(40).starts) == 1
    with pytest.raises(UserError, match=r"a\.bin has records outside of the fold .* use more rec"):
        file.hold_out(Fold(1, 2)).rows(40)


def test_the_stage_holds_out_the_fold_of_params_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "tokens").mkdir(parents=True)
    make_tokens(tmp_path / "data" / "tokens" / "train.bin", 0)  # 120 stories of 32 tokens
    monkeypatch.chdir(tmp_path)
    raw = params.read(ROOT / "params.yaml")
    assert read_text(params.parse(raw), DIGEST).held_out == (0, 0)
    raw["train"]["held_out"] = "2/3"
    assert read_text(params.parse(raw), DIGEST).held_out == (40 * 32, 80 * 32)


def test_a_text_with_fewer_stories_than_folds_is_rejected(tmp_path: Path) -> None:
    file = make_tokens(tmp_path / "a.bin", 0)
    with pytest.raises(UserError, match=r"a\.bin has 120 stories, fewer than 121 folds"):
        file.hold_out(Fold(1, 121))


def test_a_run_that_holds_out_a_fold_is_another_run(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    folds = [dataclasses.replace(job, train=job.train.hold_out(Fold(n, 3))) for n in (1, 2)]
    assert len({each.key() for each in (job, *folds)}) == 3
