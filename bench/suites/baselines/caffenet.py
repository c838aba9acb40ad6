"""CaffeNet and its training step in plain PyTorch: grouped convolutions, modules in order, an optimiser of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttransfer.networks.geometry import Geometry

CUTS = (0, 4, 8, 10, 12, 15, 19, 22, 24)
"""The number of modules of stages 1 to n, for n from 0 to 8: `net[: CUTS[n]]` ends at cut n."""


def caffenet(g: Geometry, outputs: int, *, dropout: float = 0.5) -> nn.Sequential:
    """The network: images (N, 3, crop, crop) to logits (N, outputs)."""
    c, h = g.channels, g.hidden

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    def lrn() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)

    return nn.Sequential(
        nn.Conv2d(3, c[0], g.kernel, g.stride), nn.ReLU(), pool(), lrn(),
        nn.Conv2d(c[0], c[1], 5, padding=2, groups=2), nn.ReLU(), pool(), lrn(),
        nn.Conv2d(c[1], c[2], 3, padding=1), nn.ReLU(),
        nn.Conv2d(c[2], c[3], 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(c[3], c[4], 3, padding=1, groups=2), nn.ReLU(), pool(), nn.Flatten(),
        nn.Dropout(0.0), nn.Linear(math.prod(g.cut_shape(5)), h[0]), nn.ReLU(),
        nn.Dropout(dropout), nn.Linear(h[0], h[1]), nn.ReLU(),
        nn.Dropout(dropout), nn.Linear(h[1], outputs),
    )  # fmt: skip


def layers(net: nn.Sequential) -> list[nn.Conv2d | nn.Linear]:
    """The eight layers with weights."""
    return [m for m in net if isinstance(m, nn.Conv2d | nn.Linear)]


def training_step(
    net: nn.Sequential, images: Tensor, labels: Tensor, *, bf16: bool, compiled: bool
) -> Callable[[], Tensor]:
    """A call does one step of SGD with momentum and weight decay and returns the loss.

    Args:
        bf16: under autocast.
        compiled: forward and loss through torch.compile.
    """
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, foreach=True)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return F.cross_entropy(net(images), labels)

    if compiled:
        loss_of = torch.compile(loss_of)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = loss_of(images, labels)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def products_alone(
    g: Geometry, outputs: int, batch: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], None]:
    """A call does the convolutions and matrix products of a training step, forward and backward, and no more.

    The gradient of the images is left out, as in training.
    """
    net = caffenet(g, outputs).to(device, dtype).to(memory_format=torch.channels_last)
    products: list[tuple[nn.Conv2d | nn.Linear, Tensor, Tensor]] = []
    shapes = [(batch, *g.cut_shape(0)), *((batch, c, s, s) for c, s in _inputs(g))]
    shapes += [(batch, width) for width in (math.prod(g.cut_shape(5)), *g.hidden)]
    for layer, shape in zip(layers(net), shapes, strict=True):
        x = torch.randn(shape, dtype=dtype, device=device)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_(bool(products))
        products.append((layer, x, torch.randn_like(layer.forward(x)).detach()))

    def run() -> None:
        for layer, x, gradient in products:
            wanted = [*layer.parameters(), *([x] if x.requires_grad else [])]
            torch.autograd.grad(layer.forward(x), wanted, gradient)

    return run


def _inputs(g: Geometry) -> list[tuple[int, int]]:
    """(channels, side) of what convolutions 2 to 5 read."""
    return [(g.channels[i], g.cut_shape(i + 1)[1]) for i in range(4)]
