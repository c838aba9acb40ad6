"""The training step against plain PyTorch, and the network's forms for a GPU against the plain ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICES
from torch import Tensor

from fasttransfer import ops
from fasttransfer.bench.baselines import caffenet as plain
from fasttransfer.core import randomness
from fasttransfer.networks.architecture import Architecture, StepDraws
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI, CaffeNet
from fasttransfer.networks.caffenet_stage import conv_in_halves, weights_for_blocks
from fasttransfer.networks.geometry import LAYER_NAMES, Geometry
from fasttransfer.networks.precision import dtype_of
from fasttransfer.study.recipe import Recipe, load_recipe
from fasttransfer.training.cuda_graph import RecordedGraph
from fasttransfer.training.step import StageTrainer

OUTPUTS = 10


def fresh(network: Architecture) -> dict[str, Tensor]:
    return network.draw(OUTPUTS, "he", lambda stage: randomness.key(0, "test-step", stage))


def batches(
    network: Architecture, batch: int, dtype: torch.dtype, device: str, count: int = 8
) -> list[tuple[Tensor, Tensor]]:
    """Noise around a pattern of each class, so that there is something to learn."""
    torch.manual_seed(0)
    patterns = torch.randn(OUTPUTS, *network.cut_shape(0))
    made = []
    for _ in range(count):
        labels = torch.randint(OUTPUTS, (batch,))
        x = patterns[labels] + 0.5 * torch.randn(batch, *network.cut_shape(0))
        made.append((x.to(device, dtype, memory_format=torch.channels_last), labels.to(device)))
    return made


def train(recipe: Recipe, precision: str, device: str, steps: int, start: int = 0) -> tuple[StageTrainer, list[float]]:
    torch.manual_seed(0)
    net = recipe.network.build(OUTPUTS, precision, torch.device(device), start=start)
    trainee = StageTrainer(net, start, fresh(recipe.network), recipe)
    given = batches(recipe.network, 16, dtype_of(precision), device)
    lr = torch.tensor(recipe.lr, device=device)
    losses = []
    for step in range(steps):
        x, labels = given[step % len(given)]
        draws = StepDraws({}, torch.tensor(step, device=device), 0.0)
        losses.append(trainee.step(x, labels, draws, lr).item())
    return trainee, losses


def train_plain(recipe: Recipe, dtype: torch.dtype, device: str, steps: int) -> list[float]:
    """The same with modules, autocast and an optimiser; Caffe's biases learn at twice the rate, without decay."""
    assert isinstance(recipe.network, Geometry)
    net = plain.caffenet(recipe.network, OUTPUTS, dropout=0.0).to(device, memory_format=torch.channels_last)
    weights = fresh(recipe.network)
    groups = []
    for name, layer in zip(LAYER_NAMES, plain.layers(net), strict=True):
        for kind, scale, decay in (("weight", 1.0, 1.0), ("bias", recipe.bias_lr, recipe.bias_decay)):
            parameter = getattr(layer, kind)
            parameter.data.copy_(weights[f"{name}.{kind}"])
            rate = {"lr": recipe.lr * scale, "weight_decay": recipe.weight_decay * decay}
            groups.append({"params": [parameter], **rate})
    optimiser = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    given = batches(recipe.network, 16, dtype, device)
    losses = []
    for step in range(steps):
        x, labels = given[step % len(given)]
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(net(x).float(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("device", DEVICES)
def test_two_hundred_steps_are_those_of_plain_pytorch(device: str) -> None:
    recipe = dataclasses.replace(load_recipe("mini"), lr=5e-5)
    ours = torch.tensor(train(recipe, "fp32", device, 200)[1])
    theirs = torch.tensor(train_plain(recipe, torch.float32, device, 200))
    assert ours[-1] < 0.8 * ours[0]
    torch.testing.assert_close(ours[:20], theirs[:20], rtol=1e-5, atol=0.0)
    # Sooner or later two values in a window are so near each other that a rounding decides which of them learns.
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-3 * float(ours[0]))


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_steps_are_as_close_to_float32_as_autocast_s(device: str) -> None:
    recipe = load_recipe("mini")
    exact = torch.tensor(train_plain(recipe, torch.float32, device, 30))
    ours = torch.tensor(train(recipe, "bf16", device, 30)[1])
    theirs = torch.tensor(train_plain(recipe, torch.bfloat16, device, 30))
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 0.01
    assert not torch.equal(ours, exact)


@pytest.mark.parametrize("start", [0, 1, 3, 6, 7])
def test_bfloat16_copies_are_the_rounded_weights(start: int) -> None:
    trainee, _ = train(load_recipe("mini"), "bf16", "cpu", 0, start)
    recipe = load_recipe("mini")
    x = torch.randn(4, *recipe.network.cut_shape(start)).to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    before = {name: w.clone() for name, w in trainee.weights.items()}
    trainee.step(x, torch.arange(4), StepDraws({}, torch.tensor(0), 0.0), torch.tensor(0.1))
    working = trainee.net.named_weights(start)
    assert set(working) == set(trainee.weights)
    for name, master in trainee.weights.items():
        assert master.dtype == torch.float32
        assert not torch.equal(master, before[name])
        assert torch.equal(working[name].float(), master.to(working[name].dtype).float())
    wide = {"conv1.bias", "conv2.bias", "conv5.bias", "fc8.weight", "fc8.bias"}
    assert {n for n, w in working.items() if w.dtype == torch.float32} == wide & set(working)


@pytest.mark.parametrize(
    "geometry", [CAFFENET, CAFFENET_MINI, Geometry("odd", 40, 37, 5, 2, (6, 8, 10, 12, 14), (9, 7))]
)
def test_the_first_convolution_on_blocks_of_pixels_is_the_same(geometry: Geometry) -> None:
    torch.manual_seed(0)
    store, crop, block = geometry.store, geometry.crop, geometry.stride
    images = torch.randint(0, 256, (2, store, store, 3), dtype=torch.uint8)
    views = (torch.arange(2), torch.rand(store, store, 3), torch.tensor([0, store - crop]), torch.tensor([1, 0]))
    mirror = torch.tensor([False, True])
    weight = torch.randn(geometry.weight_shapes(1)[0], dtype=torch.float64)
    on_pixels = F.conv2d(ops.augment([images], *views, mirror, crop=crop, scale=1.0).double(), weight, stride=block)
    blocks = ops.augment([images], *views, mirror, crop=crop, scale=1.0, block=block, side=geometry.blocks)
    assert blocks.shape == (2, 3 * block**2, geometry.blocks, geometry.blocks)
    on_blocks = F.conv2d(blocks.double(), weights_for_blocks(weight, block))
    torch.testing.assert_close(on_blocks, on_pixels, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_convolution_in_two_groups_is_two_convolutions(with_bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 12, 9, 7, dtype=torch.float64)
    weight = torch.randn(10, 6, 5, 5, dtype=torch.float64)
    bias = torch.randn(10, dtype=torch.float64) if with_bias else None
    torch.testing.assert_close(conv_in_halves(x, weight, bias, 2), F.conv2d(x, weight, bias, padding=2, groups=2))


def test_a_network_reads_pixels_or_blocks_of_them() -> None:
    torch.manual_seed(0)
    net = CaffeNet(CAFFENET_MINI, OUTPUTS)
    net.load(fresh(CAFFENET_MINI))
    store, crop = CAFFENET_MINI.store, CAFFENET_MINI.crop
    images = torch.randint(0, 256, (2, store, store, 3), dtype=torch.uint8)
    given = ([images], torch.arange(2), torch.zeros(store, store, 3), torch.tensor([0, 5]), torch.tensor([1, 0]))
    mirror = torch.tensor([True, False])
    pixels = ops.augment(*given, mirror, crop=crop, scale=0.01)
    blocks = ops.augment(*given, mirror, crop=crop, scale=0.01, block=3, side=CAFFENET_MINI.blocks)
    torch.testing.assert_close(net(blocks), net(pixels), rtol=1e-4, atol=1e-5)


def test_products_alone_are_those_of_the_network() -> None:
    """The reference that benchmarks compare a step with does every convolution and product of the network alone."""
    from torch.utils.flop_counter import FlopCounterMode

    run = plain.products_alone(CAFFENET_MINI, OUTPUTS, 2, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        run()
    macs = CAFFENET_MINI.macs(OUTPUTS)
    # PyTorch's counter takes the gradient of the weights of a convolution in two groups for one without: twice as much.
    overcounted = macs[1] + macs[3] + macs[4]
    assert counter.get_total_flops() == 2 * 2 * (3 * sum(macs) - macs[0] + overcounted)


@pytest.mark.gpu
def test_a_recorded_step_is_the_step() -> None:
    recipe = load_recipe("mini")
    torch.backends.cudnn.deterministic = True
    plainly, _ = train(recipe, "bf16", "cuda", 8)
    net = recipe.network.build(OUTPUTS, "bf16", torch.device("cuda"))
    trainee = StageTrainer(net, 0, fresh(recipe.network), recipe)
    lr, at = torch.tensor(recipe.lr, device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
    recorded = RecordedGraph(
        lambda given: trainee.step(given["x"], given["labels"], StepDraws({}, at, 0.0), lr) and None
    )
    for x, labels in batches(recipe.network, 16, torch.bfloat16, "cuda"):
        recorded({"x": x, "labels": labels})
    for name, weight in plainly.weights.items():
        assert torch.equal(weight, trainee.weights[name]), name
