"""Which models of torchvision and timm can be named, and which are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fasttransfer.core.errors import InputError
from fasttransfer.networks import catalogue, traced
from fasttransfer.networks.traced import trace_network


@dataclasses.dataclass(frozen=True)
class Library:
    """A library with one model."""

    make: Callable[[], nn.Module]
    release: str = "toys 1"

    def build(self, outputs: int, size: int) -> nn.Module:
        return self.make()

    def normalisation(self, tag: str | None) -> tuple[catalogue.Channels, catalogue.Channels]:
        return catalogue.IMAGENET_MEAN, catalogue.IMAGENET_STD


class Attention(nn.Module):
    """Draws by itself: the dropout of attention weights is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        return x + self.attention(x, x, x, need_weights=False)[0]


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Unused(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
        self.register_parameter("spare", nn.Parameter(torch.zeros(1)))


class Counting(nn.Module):
    """Computes something else every time it is traced or run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.runs = nn.Linear(4, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.layer(x) * self.runs


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 4, 4), Attention(), Mean(), nn.Linear(4, 2)), "draws random numbers"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 6)), r"no image classifier: .* \(2, 1, 1\)"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 7)), r"no image classifier: .* \(7,\)"),
        (Unused, "has no use for spare"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), Counting()), "something else in stages"),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 8), nn.Flatten(), torchvision.ops.StochasticDepth(0.5, "batch"), nn.Linear(4, 2)
            ),
            "drops a branch for the whole batch",
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), "not cut anywhere"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    make: Callable[[], nn.Module], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced._trace.cache_clear()
    monkeypatch.setattr(traced, "find_model", lambda name: Library(make))
    with pytest.raises(InputError, match=reason):
        trace_network(f"toys:{reason}", size=8)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("torchvision:alexnet", 32, "does not take images of 32 x 32 pixels .*: images of 64 x 64 work"),
        ("torchvision:vit_b_16", 60, "does not take images of 60 x 60 pixels .*: images of 64 x 64 work"),
        ("torchvision:maxvit_t", 64, "does not take images of 64 x 64 pixels .*: images of 224 x 224 work"),
        ("timm:ghostnet_050", 64, "differs between training and evaluation"),
        ("torchvision:resnet19", 64, "no image classifier 'resnet19': the nearest names are torchvision:resnet18"),
        ("timm:vit_tiny", 64, "the nearest names are .*timm:vit_"),
        ("resnet18", 64, "write torchvision:NAME or timm:NAME"),
        ("keras:resnet18", 64, "write torchvision:NAME or timm:NAME"),
    ],
)
def test_a_network_that_does_not_exist_or_fit_is_refused(name: str, size: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        trace_network(name, size=size)
    assert "\n" not in str(caught.value)


def test_without_timm_its_models_are_refused_and_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "timm:vit_tiny_patch16_224" in catalogue.list_names("timm:vit_*")
    monkeypatch.setattr(catalogue, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'fasttransfer\[timm\]'"):
        catalogue.find_model("timm:resnet18")
    assert catalogue.list_names("timm:*") == []


def test_classifiers_alone_are_listed() -> None:
    names = catalogue.list_names("torchvision:*")
    assert "torchvision:resnet18" in names and "torchvision:fasterrcnn_resnet50_fpn" not in names


@pytest.mark.parametrize("name", ["torchvision:googlenet", "torchvision:inception_v3"])
def test_auxiliary_heads_are_left_out(name: str) -> None:
    assert not any("aux" in part.lower() for part in trace_network(name, size=96).names())


@pytest.mark.parametrize(
    ("name", "tag", "reason"),
    [
        ("torchvision:resnet50", "v3", "no weights 'v3' of resnet50: choose IMAGENET1K_V1 or IMAGENET1K_V2"),
        ("timm:resnet18", "best", r"no weights 'best' of resnet18: choose .*a1_in1k"),
        ("timm:botnet50ts_256", "best", "no weights .best. of botnet50ts_256: name a file"),
    ],
)
def test_weights_that_a_library_does_not_publish_are_refused(name: str, tag: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        catalogue.find_model(name).download(tag, 64)


def test_weights_that_cannot_be_downloaded_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> nn.Module:
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(
        InputError, match=r"cannot be downloaded \(no route to host\): download them on another machine"
    ):
        catalogue.find_model("torchvision:resnet18").download("IMAGENET1K_V1", 64)


def test_images_are_normalised_as_the_library_does() -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert catalogue.find_model("torchvision:resnet18").normalisation() == imagenet
    assert catalogue.find_model("timm:resnet18").normalisation() == imagenet
    assert catalogue.find_model("timm:vit_tiny_patch16_224").normalisation() == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
