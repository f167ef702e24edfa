"""The fit of the scaling law finds the law that made the points."""

from __future__ import annotations

import math

import pytest

from bench.scaling_law import Law, Point, fit, resampled

TRUE = Law(floor=1.1, model=0.9, alpha=0.35, data=1.3, beta=0.45, repeats=6.0)
RUNS = [
    (parameters * 10**6, int(tokens * 1e6), int(unique * 1e6))
    for parameters in (2, 6, 25)
    for tokens, unique in ((0.5, 9), (2, 9), (8, 9), (8, 1), (2, 0.25), (16, 2))
]
POINTS = [Point(*run, TRUE.loss(*run)) for run in RUNS]


def test_it_finds_the_law() -> None:
    found = fit(POINTS, [(0.3, -1.0, 0.0, 0.3, 0.3, 1.5), (-1.0, 0.5, 1.0, 0.3, 0.6, 1.5)])
    for run in (*RUNS, (50 * 10**6, 64 * 10**6, 32 * 10**6)):
        assert found.loss(*run) == pytest.approx(TRUE.loss(*run), rel=0.005)
    assert found.alpha == pytest.approx(TRUE.alpha, rel=0.1)
    assert found.beta == pytest.approx(TRUE.beta, rel=0.1)


def test_repeats_teach_less_and_less() -> None:
    once, twice, often, always = (TRUE.loss(2e6, n * 1e6, 1e6) for n in (1, 2, 50, 1000))
    assert once > twice > often
    assert often == pytest.approx(always, abs=1e-3)
    assert TRUE.loss(2e6, 1e6, 5e6) == once
    assert twice > TRUE.loss(2e6, 2e6, 2e6)


def test_samples_vary_with_noise() -> None:
    noisy = [
        Point(p.parameters, p.tokens, p.unique, p.loss * math.exp(0.004 * (-1) ** i))
        for i, p in enumerate(POINTS)
    ]
    target = 6e6, 32e6, 32e6
    losses = sorted(law.loss(*target) for law in resampled(noisy, TRUE, 4))
    assert losses[0] < losses[-1]
    assert losses[0] * 0.95 < TRUE.loss(*target) < losses[-1] * 1.05
