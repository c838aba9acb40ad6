"""Where models of torchvision and timm are cut, and what their stages compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttransfer.core.errors import InputError
from fasttransfer.networks import catalogue, cutting
from fasttransfer.networks.traced import trace_network

RESNET18 = ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "fc"]
VGG11_BN = [
    *("features.0", "features.4", "features.8", "features.11", "features.15", "features.18", "features.22"),
    *("features.25", "classifier.0", "classifier.3", "classifier.6"),
]
DENSENET121 = [
    *("features.conv0", "features.denseblock1", "features.transition1", "features.denseblock2"),
    *("features.transition2", "features.denseblock3", "features.transition3", "features.denseblock4", "classifier"),
]
ALEXNET = [
    *("features.0", "features.3", "features.6", "features.8", "features.10"),
    *("classifier.1", "classifier.4", "classifier.6"),
]
VIT_TINY = ["patch_embed", *(f"blocks.{i}" for i in range(12)), "head"]
VIT_B_16 = ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "heads.head"]

# Side of the images; the stages, or the first ones, their number and the last.
MODELS = {
    "torchvision:alexnet": (64, ALEXNET),
    "torchvision:vgg11_bn": (32, VGG11_BN),
    "torchvision:resnet18": (64, RESNET18),
    "torchvision:resnet50": (32, (["conv1", "layer1.0", "layer1.1", "layer1.2", "layer2.0"], 18, "fc")),
    "torchvision:mobilenet_v3_small": (32, (["features.0", "features.1", "features.2"], 15, "classifier.3")),
    "torchvision:efficientnet_b0": (32, (["features.0", "features.1.0", "features.2.0"], 19, "classifier.1")),
    "torchvision:convnext_tiny": (32, (["features.0", "features.1.0", "features.1.1"], 23, "classifier.2")),
    "torchvision:densenet121": (32, DENSENET121),
    "torchvision:regnet_y_400mf": (32, (["stem", "trunk_output.block1.block1-0"], 18, "fc")),
    "torchvision:swin_t": (32, (["features.0", "features.1.0", "features.1.1", "features.2"], 17, "head")),
    "torchvision:vit_b_16": (32, VIT_B_16),
    "timm:resnet18": (32, RESNET18),
    "timm:vit_tiny_patch16_224": (64, VIT_TINY),
    "timm:convnextv2_atto": (32, (["stem", "stages.0.blocks.0", "stages.0.blocks.1"], 17, "head")),
    "timm:mobilenetv4_conv_small": (32, (["conv_stem", "blocks.0.0", "blocks.0.1"], 20, "classifier")),
    "timm:mixer_b16_224": (32, ["stem", *(f"blocks.{i}" for i in range(12)), "head"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_cut_into_its_blocks_and_computes_the_same(name: str) -> None:
    size, stages = MODELS[name]
    architecture = trace_network(name, size=size)  # raises where both modes do not compute what the model does
    if isinstance(stages, tuple):
        first, count, last = stages
        assert list(architecture.stages[: len(first)]) == first
        assert (len(architecture.stages), architecture.stages[-1]) == (count, last)
    else:
        assert list(architecture.stages) == stages

    network = architecture.build(3, "fp32", torch.device("cpu"))
    model = catalogue.find_model(name).build(3, size)
    network.load(model.state_dict())
    model.load_state_dict(network.state(), strict=True)
    model.eval().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits, x = model(images / torch.tensor(architecture.std).view(3, 1, 1)), images
        torch.testing.assert_close(network(images), logits, rtol=1e-4, atol=1e-5)
        for cut in architecture.cuts:
            x = network(x, start=cut - 1, stop=cut)
            assert tuple(x.shape) == (2, *architecture.cut_shape(cut))
        assert torch.equal(network(x, start=architecture.cuts[-1]), network(images))


class Toy(nn.Module):
    """A network whose forward pass is given; a layer is named a, b, c, d by its place."""

    def __init__(self, run: Callable[..., object], *layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in zip("abcd", layers, strict=False):
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def chain(net: Toy, x: Tensor) -> Tensor:
    for layer in net.children():
        x = layer(x)
    return x.mean((2, 3))


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


def names(model: nn.Module) -> list[str]:
    return [segment.name for segment in cutting.trace(model, 8).segments]


def test_layers_of_a_chain_are_stages() -> None:
    assert names(Toy(chain, conv(), conv(), conv())) == ["a", "b", "c"]


def test_layers_inside_a_residual_connection_are_one_stage() -> None:
    def run(net: Toy, x: Tensor) -> Tensor:
        y = net.a(x)
        return (y + net.c(net.b(y))).mean((2, 3))

    assert names(Toy(run, conv(), conv(), conv())) == ["a", "b"]  # behind a, only what both branches read is alive

    def shifted(net: Toy, x: Tensor) -> Tensor:
        y = net.a(x)
        z = net.b(y).relu()
        return net.d((y + net.c(z)).relu()).mean((2, 3))

    assert names(Toy(shifted, conv(), conv(), conv(), conv())) == ["a", "b", "d"]


def test_a_layer_used_twice_is_in_one_stage() -> None:
    def run(net: Toy, x: Tensor) -> Tensor:
        return net.c(net.a(net.b(net.a(x)))).mean((2, 3))

    assert names(Toy(run, conv(), conv(), conv())) == ["a", "c"]


def test_a_tied_weight_is_in_one_stage() -> None:
    first, second = conv(), conv()
    second.weight = first.weight
    assert names(Toy(chain, first, second, conv())) == ["a", "c"]


def test_normalisation_joins_the_layer_before_it_and_else_the_block_behind_it() -> None:
    def block() -> nn.Module:
        return nn.Sequential(Toy(lambda net, x: x + net.a(x), conv()))

    def norm() -> nn.Module:
        return nn.BatchNorm2d(3)

    assert names(Toy(chain, conv(), norm(), conv())) == ["a", "c"]
    assert names(Toy(chain, block(), norm(), conv(), conv())) == ["a.0", "b", "d"]
    assert names(Toy(chain, conv(), block(), norm(), conv())) == ["a", "b.0", "d"]  # d is the classifier


def test_a_parameter_of_the_network_itself_belongs_to_the_stage_that_uses_it() -> None:
    def run(net: Toy, x: Tensor) -> Tensor:
        return net.b(net.a(x) + net.shift.expand(x.shape[0], -1, -1, -1)).mean((2, 3))

    model = Toy(run, conv(), conv())
    model.shift = nn.Parameter(torch.ones(1, 3, 1, 1))
    trace = cutting.trace(model, 8)
    first, second = cutting.split(trace, trace.segments)
    assert set(first.state_dict()) == {"a.weight", "a.bias", "shift"}
    assert set(second.state_dict()) == {"b.weight", "b.bias"}
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(second(first(x)), model(x))


def test_a_stage_leaves_the_cut_that_it_reads_unchanged() -> None:
    def run(net: Toy, x: Tensor) -> Tensor:
        return net.b(net.a(x)).mean((2, 3))

    def changing(net: Toy, x: Tensor) -> Tensor:
        return net.a(F.relu(x, inplace=True))

    trace = cutting.trace(Toy(run, conv(), Toy(changing, conv())), 8)
    first, second = cutting.split(trace, trace.segments)
    x = first(torch.randn(2, 3, 8, 8)).detach()
    before = x.clone()
    second(x)
    assert torch.equal(x, before)
    assert float(before.min()) < 0


def test_a_module_that_cannot_be_traced_through_is_a_block() -> None:
    block = Toy(lambda net, x: net.a(x) if x.shape[-1] % 2 == 0 else -net.a(x), nn.Sequential(conv(), conv()))
    assert names(Toy(chain, block, conv())) == ["a", "b"]
    assert names(Toy(chain, Toy(lambda net, x: net.a(x), nn.Sequential(conv(), conv())), conv())) == [
        *("a.a.0", "a.a.1", "b")
    ]


def two_inputs() -> nn.Module:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    return Two()


def dropping(net: Toy, x: Tensor) -> Tensor:
    return F.dropout(chain(net, x), training=net.training)


def deciding(net: Toy, x: Tensor) -> Tensor:
    return chain(net, x) if x.sum() > 0 else chain(net, -x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (two_inputs, "takes 2 tensors"),
        (lambda: Toy(dropping, conv()), "differs between training and evaluation"),
        (lambda: Toy(deciding, conv()), "torch.fx cannot trace .*control flow"),
        (lambda: Toy(lambda net, x: x.mean((2, 3))), "no layers with weights"),
        (lambda: Toy(lambda net, x: (chain(net, x), x), conv()), "one vector for each image"),
        (lambda: Toy(lambda net, x: chain(net, x).sum(), conv()), "one vector for each image"),
    ],
)
def test_what_cannot_be_cut_is_refused(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(cutting.TraceError, match=reason):
        cutting.trace(make(), 8)


@pytest.mark.parametrize(
    ("cuts", "stages"),
    [
        (["layer1", "layer2", "layer3", "layer4"], ["layer1", "layer2", "layer3", "layer4", "fc"]),
        (["layer4", "conv1", "layer2.0"], ["conv1", "layer2.0", "layer4", "fc"]),
        (["layer2"], ["layer2", "fc"]),  # the rest belongs to the last stage
    ],
)
def test_cuts_are_named_by_what_they_end(cuts: list[str], stages: list[str]) -> None:
    default = trace_network("torchvision:resnet18", size=64)
    chosen = trace_network("torchvision:resnet18", size=64, cuts=cuts)
    assert list(chosen.stages) == stages
    for name, cut in zip(chosen.stages, chosen.cuts, strict=False):
        last = max(n for n, stage in enumerate(default.stages, start=1) if f"{stage}.".startswith(f"{name}."))
        assert chosen.cut_shape(cut) == default.cut_shape(last)
        assert chosen.names(0, cut) == default.names(0, last)


@pytest.mark.parametrize(
    ("cuts", "reason"),
    [
        (["layer5"], "no cut 'layer5': choose from conv1, layer1.0, layer1, layer1.1, layer2.0"),
        (["fc"], "no cut 'fc'"),
        (["layer1", "layer1.1"], "layer1 and layer1.1 are the same cut"),
        (["layer1", "layer1"], "the same cut"),
        ([], "not cut anywhere"),
    ],
)
def test_cuts_that_cannot_be_made_are_refused(cuts: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        trace_network("torchvision:resnet18", size=64, cuts=cuts)
