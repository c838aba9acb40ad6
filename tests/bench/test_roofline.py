"""Operations and bytes against figures worked out by hand for CaffeNet, and against PyTorch's own count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fasttransfer.bench import roofline
from fasttransfer.networks import caffenet
from fasttransfer.networks.geometry import CAFFENET, CAFFENET_MINI, Geometry
from fasttransfer.study.cells import Cell, base
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training import cost

FROZEN = [Cell(0, "B", "transfer", n) for n in range(1, 8)]


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in two groups as on a GPU: PyTorch counts the gradient of a grouped one's weights twice."""

    def convolution(stage: caffenet.Stage, x: Tensor) -> Tensor:
        bias = None if stage.pools else stage.bias
        if stage.groups == 2:
            return caffenet.conv_in_halves(x, stage.weight, bias, stage.padding)
        return F.conv2d(x, stage.weight, bias, stage.stride, stage.padding)

    monkeypatch.setattr(caffenet.Stage, "_convolve", convolution)


def counted(geometry: Geometry, outputs: int, cells: list[Cell], images: int) -> int:
    """FLOPs of a training step as PyTorch counts them: the prefix once, then every cell."""
    network = caffenet.CaffeNet(geometry, outputs)
    x, cuts = torch.randn(images, *geometry.cut_shape(0)), {}
    with FlopCounterMode(display=False) as counter:
        deepest = max((cell.n for cell in cells if cell.frozen), default=0)
        cuts[0] = x
        for n in range(1, deepest + 1):  # not without gradients: the one operator for a frozen stage is not counted
            cuts[n] = network(cuts[n - 1], start=n - 1, stop=n).detach()
        for cell in cells:
            start = cell.first_trained
            loss = network(cuts[start], start=start).sum()
            torch.autograd.grad(loss, list(network.named_weights(start).values()))
    return counter.get_total_flops()


def test_the_papers_network_by_hand() -> None:
    assert roofline.forward(CAFFENET, 1000, 1, 2).flops / 1e9 == pytest.approx(1.449, abs=0.0005)
    assert roofline.trained(CAFFENET, 1000, base("A", 0), 1, 2).flops / 1e9 == pytest.approx(4.136, abs=0.0005)
    together = roofline.cohort(CAFFENET, 1000, FROZEN, 1, 2).flops
    alone = sum(roofline.cohort(CAFFENET, 1000, [cell], 1, 2).flops for cell in FROZEN)
    assert (together / 1e9, alone / 1e9) == (pytest.approx(9.07, abs=0.01), pytest.approx(14.81, abs=0.01))


def test_stages_make_up_the_network() -> None:
    whole = roofline.forward(CAFFENET, 500, 3, 2)
    parts = [roofline.forward(CAFFENET, 500, 3, 2, start=n, stop=n + 1) for n in range(8)]
    assert sum(parts, roofline.NOTHING) == whole


@pytest.mark.usefixtures("halved")
def test_operations_are_those_that_pytorch_counts() -> None:
    network, x = caffenet.CaffeNet(CAFFENET, 1000), torch.randn(1, 3, 227, 227)
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert counter.get_total_flops() == roofline.forward(CAFFENET, 1000, 1, 2).flops
    whole = [base("B", 0)]
    assert counted(CAFFENET, 1000, whole, 1) == roofline.cohort(CAFFENET, 1000, whole, 1, 2).flops
    cells = [*FROZEN, Cell(0, "B", "transfer+", 3)]
    assert counted(CAFFENET_MINI, 16, cells, 2) == roofline.cohort(CAFFENET_MINI, 16, cells, 2, 4).flops


def test_bytes_by_hand() -> None:
    # Stage 1, 64 images in bfloat16: 227 x 227 x 3 read, 27 x 27 x 96 written, 96 x (363 + 1) weights read.
    stage = roofline.forward(CAFFENET, 500, 64, 2, stop=1)
    assert stage.bytes == 2 * (64 * 3 * 227**2 + 64 * 96 * 27**2 + 96 * 364)
    # Stage 8 frozen up to cut 7: float32 weights and logits, bfloat16 features. Forward reads features and weights and
    # writes logits; backward reads features, weights are not needed, and writes their gradient; then the update.
    count, features, logits = 500 * 4097, 2 * 64 * 4096, 4 * 64 * 500
    expected = features + 4 * count + logits + logits + features + 4 * count + 20 * count
    assert roofline.trained(CAFFENET, 500, FROZEN[-1], 64, 2).bytes == expected
    # Images: a byte read and two written, for each mean that is subtracted.
    assert roofline.entrance(CAFFENET, 64, 2, means=2).bytes == 2 * 64 * 3 * 227**2 * 3


def test_a_prefix_is_shared_and_images_come_once_a_mean() -> None:
    alone = [roofline.cohort(CAFFENET, 500, [cell], 8, 2) for cell in FROZEN]
    together = roofline.cohort(CAFFENET, 500, FROZEN, 8, 2)
    prefixes = [roofline.forward(CAFFENET, 500, 8, 2, stop=cell.n) for cell in FROZEN[:-1]]
    spared = sum(prefixes, roofline.NOTHING) + roofline.entrance(CAFFENET, 8, 2) * 6
    assert sum(alone, roofline.NOTHING) == together + spared


def test_a_study_is_its_cohorts() -> None:
    recipe, cells = load_recipe("mini"), [base("A", 0), base("B", 0), *FROZEN]
    classes = {task: tuple("abcd") for task in "AB"}
    train, val = {"A": 640, "B": 320}, {"A": 50, "B": 50}
    cohorts = roofline.cohorts_of(recipe, cells, classes, train, val)
    assert [len(each.cells) for each in cohorts] == [1, 1, 7]
    work = roofline.study(recipe.geometry, recipe.batch, cohorts, 4)
    macs = 0
    for each in cohorts:
        macs += each.steps * recipe.batch * cost.cohort_macs(recipe.geometry, each.outputs, each.cells)
        macs += each.checks * 50 * cost.validation_macs(recipe.geometry, each.outputs, each.cells)
    assert work.flops == pytest.approx(2 * macs, rel=1e-9)


def test_the_least_time_is_that_of_the_scarcer_resource() -> None:
    assert roofline.Work(100, 10).seconds(10.0, 10.0) == 10.0
    assert roofline.Work(10, 100).seconds(10.0, 10.0) == 10.0
