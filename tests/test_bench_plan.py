"""`make bench-plan`: the errors of estimates."""

from __future__ import annotations

import dataclasses

import pytest

from bench import plan
from storyllamas.plan.estimate import Estimate
from storyllamas.plan.measure import Machine
from storyllamas.plan.table import Plan, Row
from storyllamas.training.speed_log import Speed

ESTIMATE = Estimate("2m", 8, 1200.0, 60.0, 0.9e9, 1e8, None, 0)
SPEED = Speed("a processor", {}, {}, {}, 100, 300.0, 1000, 1_000_000_000, 1e11)


def test_errors_are_relative_to_the_run() -> None:
    compared = [
        plan.Compared("quick", ESTIMATE, SPEED),
        plan.Compared("fast", ESTIMATE, dataclasses.replace(SPEED, tokens_per_second=1250)),
    ]
    assert compared[0].errors == (pytest.approx(0.2), pytest.approx(-0.1))
    text = plan.markdown(compared)
    assert "| 2m | quick | 300 | 1.2k | 1.0k | +20% | 900 | 1,000 | -10% | 0 |" in text
    assert "2 estimates. speed: median 12%, largest 20%, memory: median 10%, largest 10%" in text


def test_sizes_without_an_estimate_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine("a processor", "cpu", "float32", 2, 1, 1e11)
    rows = [
        Row("2m", 1, 1, True, False, ESTIMATE, "", "too few runs"),
        Row("7m", 1, 1, True, False, ESTIMATE, "2m", "too few runs"),
    ]
    found = Plan("quick", "2m", machine, 20.0, rows, [])
    monkeypatch.setattr(plan.make, "make", lambda overrides: found)
    monkeypatch.setattr(plan, "train", lambda raw, seconds: SPEED)
    compared = plan.compare("quick", ["2m", "7m", "9m"], 300.0)
    assert [each.estimate for each in compared] == [ESTIMATE, ESTIMATE]
    printed = capsys.readouterr().out
    assert "2m, quick: training for 300 s" in printed
    assert "9m, quick: not a size of the recipe" in printed


def test_too_short_a_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench.plan", "--minutes", "0.2"])
    with pytest.raises(SystemExit, match=r"--minutes is 0.2: give more than 0.5"):
        plan.main()
