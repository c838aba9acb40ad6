"""CaffeNet against a plain PyTorch one, and against the paper's table."""

from __future__ import annotations

import math

import pytest
import torch

from fasttransfer.bench.baselines import caffenet as plain
from fasttransfer.core import randomness
from fasttransfer.networks.architecture import StagedNetwork, StepDraws
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI, CaffeNet, CaffeNetArchitecture
from fasttransfer.networks.geometry import LAYER_NAMES, Geometry
from fasttransfer.networks.precision import dtype_of

# The paper README's layers: output channels, kernel, and standard deviation and bias of the initial values.
PAPER = {
    "conv1": ((96, 3, 11, 11), 0.01, 0),
    "conv2": ((256, 48, 5, 5), 0.01, 1),
    "conv3": ((384, 256, 3, 3), 0.01, 0),
    "conv4": ((384, 192, 3, 3), 0.01, 1),
    "conv5": ((256, 192, 3, 3), 0.01, 1),
    "fc6": ((4096, 9216), 0.005, 1),
    "fc7": ((4096, 4096), 0.005, 1),
    "fc8": ((1000, 4096), 0.01, 0),
}


@pytest.mark.parametrize(("network", "batch"), [(CAFFENET, 1), (CAFFENET_MINI, 3)])
def test_forward_and_gradients_are_those_of_plain_pytorch(network: CaffeNetArchitecture, batch: int) -> None:
    weights = network.draw(10, "he", lambda stage: randomness.key(0, "test", stage))
    ours, net = CaffeNet(network, 10).double(), plain.caffenet(network, 10, dropout=0.0).double()
    ours.load(weights)
    for name, layer in zip(LAYER_NAMES, plain.layers(net), strict=True):
        layer.weight.data.copy_(weights[f"{name}.weight"])
        layer.bias.data.copy_(weights[f"{name}.bias"])
    x = torch.randn(batch, *network.cut_shape(0), dtype=torch.float64)
    logits, expected = ours(x), net(x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    found = torch.autograd.grad(logits.square().sum(), list(ours.named_weights().values()))
    wanted = torch.autograd.grad(expected.square().sum(), [p for m in plain.layers(net) for p in (m.weight, m.bias)])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


ODD = CaffeNetArchitecture("odd", 40, 37, 5, 2, (6, 8, 10, 12, 14), (9, 7))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("start", range(8))
@pytest.mark.parametrize("network", [CAFFENET, CAFFENET_MINI, ODD], ids=lambda network: network.name)
def test_gradients_are_autograds(network: CaffeNetArchitecture, start: int, precision: str) -> None:
    net = network.build(10, precision, torch.device("cpu"), start=start)
    net.load(network.draw(10, "he", lambda stage: randomness.key(0, "test", stage)), start)
    torch.manual_seed(0)
    x = torch.randn(3, *network.cut_shape(start)).to(dtype_of(precision))
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    draws = StepDraws({7: 11, 8: 12}, torch.tensor(3), 0.5)
    given = x, torch.tensor([1, 2, 9]), draws
    loss, ours = net.gradients(*given, start=start, label_smoothing=0.1)
    expected, autograds = StagedNetwork.gradients(net, *given, start=start, label_smoothing=0.1)
    assert loss.grad_fn is None and not any(gradient.requires_grad for gradient in ours)
    torch.testing.assert_close(loss, expected)
    for one, other, weight in zip(ours, autograds, net.named_weights(start).values(), strict=True):
        assert one.dtype == other.dtype and one.shape == weight.shape and one.stride() == weight.stride()
        close = 1e-5 if precision == "fp32" else 1e-2
        assert (one.double() - other.double()).norm() <= close * other.double().norm()


def test_gradients_of_blocks_of_pixels() -> None:
    """Stage 1 reads them on a GPU; on a CPU autograd computes the gradients."""
    net = CAFFENET_MINI.build(10, "fp32", torch.device("cpu"))
    net.load(CAFFENET_MINI.draw(10, "he", lambda stage: randomness.key(0, "test", stage)))
    x = torch.randn(3, 27, 20, 20)
    given = x, torch.tensor([1, 2, 9]), StepDraws({}, torch.tensor(3), 0.0)
    _, gradients = net.gradients(*given, start=0, label_smoothing=0.0)
    assert [g.shape for g in gradients] == [w.shape for w in net.named_weights().values()]


def test_shapes_are_the_papers() -> None:
    net = CaffeNet(CAFFENET, 1000)
    assert {name: tuple(p.shape) for name, p in net.named_weights().items() if name.endswith("weight")} == {
        f"{name}.weight": shape for name, (shape, _, _) in PAPER.items()
    }
    assert CAFFENET.sides == (55, 27, 13, 13, 13)
    assert [CAFFENET.cut_shape(n) for n in range(8)] == [
        (3, 227, 227), (96, 27, 27), (256, 13, 13), (384, 13, 13), (384, 13, 13), (256, 6, 6), (4096,), (4096,),
    ]  # fmt: skip


def test_multiply_adds_are_the_papers() -> None:
    millions = [m / 1e6 for m in CAFFENET.macs(1000)]
    assert [round(m) for m in millions] == [105, 224, 150, 112, 75, 38, 17, 4]
    assert round(sum(millions)) == 724


@pytest.mark.parametrize("geometry", [CAFFENET_MINI, Geometry("odd", 40, 37, 5, 2, (6, 8, 10, 12, 14), (9, 7))])
def test_cuts_have_the_shapes_the_geometry_says(geometry: Geometry) -> None:
    net = CaffeNet(geometry, 5)
    x = torch.randn(2, *geometry.cut_shape(0))
    for n in range(1, 8):
        assert tuple(net(x, stop=n).shape) == (2, *geometry.cut_shape(n))


def test_a_network_can_be_entered_at_any_cut() -> None:
    net = CaffeNet(CAFFENET_MINI, 5)
    net.load(CAFFENET_MINI.draw(5, "he", lambda stage: stage))
    x, draws = torch.randn(2, *CAFFENET_MINI.cut_shape(0)), StepDraws({7: 11, 8: 12}, torch.tensor(3), 0.5)
    whole = net(x, draws=draws)
    for n in range(1, 8):
        assert torch.equal(net(net(x, stop=n, draws=draws), start=n, draws=draws), whole)


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_in_one_piece(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = CaffeNet(CAFFENET_MINI, 5, dtype)
    net.load(CAFFENET_MINI.draw(5, "he", lambda stage: stage))
    x = torch.randn(4, *CAFFENET_MINI.cut_shape(0)).to(dtype, memory_format=torch.channels_last)
    draws, weights = StepDraws({7: 11, 8: 12}, torch.tensor(3), 0.5), list(net.named_weights().values())
    logits = net(x, draws=draws).float()
    gradients = torch.autograd.grad(logits.square().mean(), weights)
    net.compile(fullgraph=True)
    compiled = net(x, draws=draws).float()
    close = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(compiled, logits, rtol=close, atol=close)
    for found, wanted in zip(torch.autograd.grad(compiled.square().mean(), weights), gradients, strict=True):
        assert (found - wanted).norm() <= close * wanted.norm() + 1e-6


def test_dropout_sits_at_the_entrance_of_stages_7_and_8() -> None:
    net = CaffeNet(CAFFENET_MINI, 5)
    net.load(CAFFENET_MINI.draw(5, "he", lambda stage: stage))
    x, draws = torch.randn(2, *CAFFENET_MINI.cut_shape(0)), StepDraws({7: 11, 8: 12}, torch.tensor(3), 0.5)
    assert torch.equal(net(x, stop=6), net(x, stop=6, draws=draws))  # cuts 1 to 6: functions of the image
    assert not torch.equal(net(x, stop=7), net(x, stop=7, draws=draws))
    at_7 = net(x, stop=7)
    assert not torch.equal(net(at_7, start=7), net(at_7, start=7, draws=draws))


@pytest.mark.parametrize("layer", PAPER)
def test_initial_values_are_caffes(layer: str) -> None:
    shape, deviation, bias = PAPER[layer]
    weights = CAFFENET.draw(1000, "caffe", lambda stage: randomness.key(0, "init", stage))
    values = weights[f"{layer}.weight"]
    assert tuple(values.shape) == shape
    tolerance = 5 / math.sqrt(values.numel())
    assert abs(float(values.double().std()) / deviation - 1) < tolerance
    assert abs(float(values.double().mean()) / deviation) < tolerance
    assert (weights[f"{layer}.bias"] == bias).all()


def test_he_values_keep_the_size_of_the_signal() -> None:
    weights = CAFFENET_MINI.draw(16, "he", lambda stage: stage)
    for name, shape in zip(LAYER_NAMES[:-1], CAFFENET_MINI.weight_shapes(16), strict=False):
        assert float(weights[f"{name}.weight"].std()) == pytest.approx(math.sqrt(2 / math.prod(shape[1:])), rel=0.1)
        assert (weights[f"{name}.bias"] == 0).all()


def test_weights_of_another_shape_are_refused() -> None:
    net = CaffeNet(CAFFENET_MINI, 5)
    with pytest.raises(ValueError, match=r"fc8\.weight"):
        net.load(CAFFENET_MINI.draw(6, "he", lambda stage: stage))
