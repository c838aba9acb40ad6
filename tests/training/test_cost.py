"""Multiply-adds against figures worked out by hand for CaffeNet."""

from __future__ import annotations

import pytest

from fasttransfer.networks.caffenet import CaffeNet
from fasttransfer.networks.geometry import CAFFENET, CAFFENET_MINI
from fasttransfer.study.cells import Cell, base
from fasttransfer.training import cost


def test_a_training_step_of_the_base() -> None:
    # Twice the multiply-adds: 4.136 GFLOP an image with 1000 outputs is 3 * 724.4 - 105.4 M, doubled.
    assert 2 * cost.trained_macs(CAFFENET, 1000, base("A", 0)) / 1e9 == pytest.approx(4.136, abs=0.001)


def test_seven_frozen_cells_together_and_one_by_one() -> None:
    cells = [Cell(0, "B", "transfer", n) for n in range(1, 8)]
    together = 2 * cost.cohort_macs(CAFFENET, 1000, cells) / 1e9
    alone = sum(2 * cost.cohort_macs(CAFFENET, 1000, [c]) / 1e9 for c in cells)
    assert together == pytest.approx(9.07, abs=0.01)
    assert alone == pytest.approx(14.81, abs=0.01)


def test_fine_tuned_cells_share_nothing() -> None:
    cells = [Cell(0, "B", t, n) for t in ("transfer+", "selffer+") for n in (1, 7)]
    whole = cost.trained_macs(CAFFENET, 500, base("B", 0))
    assert cost.cohort_macs(CAFFENET, 500, cells) == 4 * whole


def test_weights_are_counted_as_they_are() -> None:
    net = CaffeNet(CAFFENET_MINI, 16)
    assert cost.weight_count(CAFFENET_MINI, 16) == sum(p.numel() for p in net.parameters())


def test_validation_is_one_forward_pass_with_prefixes_shared() -> None:
    whole = sum(CAFFENET.macs(500))
    assert cost.validation_macs(CAFFENET, 500, [base("B", 0)]) == whole
    assert cost.validation_macs(CAFFENET, 500, [Cell(0, "B", "transfer", 3)]) == whole
    frozen = [Cell(0, "B", "transfer", n) for n in (3, 5)]
    assert cost.validation_macs(CAFFENET, 500, frozen) == whole + sum(CAFFENET.macs(500)[3:])
