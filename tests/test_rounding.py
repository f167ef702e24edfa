"""Rounding of numbers for metrics, logs and tables."""

from __future__ import annotations

from storyllamas.rounding import six_digits


def test_floats_are_rounded_and_the_rest_stays() -> None:
    value = {"a": 1.23456789, "b": {"c": 123456789.0, "d": 123456789, "e": "1.23456789"}}
    assert six_digits(value) == {
        "a": 1.23457,
        "b": {"c": 123457000.0, "d": 123456789, "e": "1.23456789"},
    }
    assert isinstance(six_digits(3), int)
    assert six_digits(True) is True
