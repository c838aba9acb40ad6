"""How scores and differences are written."""

from __future__ import annotations

import pytest

from fasttransfer.core.intervals import Estimate
from fasttransfer.report.numbers import cost, decimals, per_cent, points


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.0253, 1, "−2.5"), (0.0031, 1, "+0.3"), (0.0001, 1, "0.0"), (-0.0001, 1, "0.0"), (-0.026, 0, "−3")],
)
def test_points(value: float, digits: int, text: str) -> None:
    assert points(value, digits) == text


def test_per_cent() -> None:
    assert per_cent(0.62344) == "62.3"
    assert per_cent(0.62344, 0) == "62"


def test_cost() -> None:
    assert cost(Estimate(0.0832, 3, 0.0041)) == "8.3 ± 0.4"
    assert cost(Estimate(-0.0832, 1)) == "−8.3"
    assert cost(Estimate(-0.0002, 1)) == "0.0"


@pytest.mark.parametrize(
    ("counts", "digits"), [({"A": 25000, "B": 25000}, 1), ({"A": 640, "B": 100}, 0), ({"A": 200}, 1), ({}, 1)]
)
def test_decimals_follow_the_smaller_validation_set(counts: dict[str, int], digits: int) -> None:
    assert decimals({"val_pictures": counts}, ("A", "B")) == digits
