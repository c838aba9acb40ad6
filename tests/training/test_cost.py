"""Multiply-adds against figures worked out by hand for CaffeNet, and against PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI, CaffeNet, CaffeNetArchitecture
from fasttransfer.networks.caffenet_stage import Stage, conv_in_halves
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
    assert CAFFENET_MINI.weight_count(16) == sum(p.numel() for p in net.parameters())


def test_validation_is_one_forward_pass_with_prefixes_shared() -> None:
    whole = sum(CAFFENET.macs(500))
    assert cost.validation_macs(CAFFENET, 500, [base("B", 0)]) == whole
    assert cost.validation_macs(CAFFENET, 500, [Cell(0, "B", "transfer", 3)]) == whole
    frozen = [Cell(0, "B", "transfer", n) for n in (3, 5)]
    assert cost.validation_macs(CAFFENET, 500, frozen) == whole + sum(CAFFENET.macs(500)[3:])


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolve two groups as halves, as on a GPU: PyTorch counts the gradient of grouped weights twice."""

    def convolution(stage: Stage, x: Tensor) -> Tensor:
        bias = None if stage.pools else stage.bias
        if stage.groups == 2:
            y = conv_in_halves(x, stage.weight, bias, stage.padding)
        else:
            y = F.conv2d(x, stage.weight, bias, stage.stride, stage.padding)
        return y if stage.pools else F.relu(y)

    monkeypatch.setattr(Stage, "_convolve", convolution)


def counted(architecture: CaffeNetArchitecture, outputs: int, cells: list[Cell], images: int) -> int:
    """Return the FLOPs of a training step as PyTorch counts them: the shared prefix once, then every cell."""
    network = CaffeNet(architecture, outputs)
    cuts = {0: torch.randn(images, *architecture.cut_shape(0))}
    with FlopCounterMode(display=False) as counter:
        deepest = max((cell.n for cell in cells if cell.frozen), default=0)
        for n in range(1, deepest + 1):  # with gradients: the fused operator of a frozen stage is not counted
            cuts[n] = network(cuts[n - 1], start=n - 1, stop=n).detach()
        for cell in cells:
            start = cell.first_trained
            loss = network(cuts[start], start=start).sum()
            torch.autograd.grad(loss, list(network.named_weights(start).values()))
    return int(counter.get_total_flops())


@pytest.mark.usefixtures("halved")
def test_pytorch_counts_the_same_operations() -> None:
    whole = [base("B", 0)]
    assert counted(CAFFENET, 1000, whole, 1) == 2 * cost.cohort_macs(CAFFENET, 1000, whole)
    cells = [*(Cell(0, "B", "transfer", n) for n in range(1, 8)), Cell(0, "B", "transfer+", 3)]
    assert counted(CAFFENET_MINI, 16, cells, 2) == 2 * 2 * cost.cohort_macs(CAFFENET_MINI, 16, cells)
