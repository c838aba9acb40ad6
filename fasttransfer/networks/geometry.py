"""The sizes of CaffeNet: shapes, weights and multiply-adds of its stages. Plain numbers, no tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Layer(NamedTuple):
    """The properties of a stage's layer that all geometries share.

    Attributes:
        name: Caffe's name.
        kernel: side of a convolution's kernel, 0 for a fully connected layer; for the first stage see `Geometry`.
        after: "pool+lrn", "pool" or "relu" (ReLU comes first in each), "" for the last stage.
        deviation, bias: standard deviation of the weights and value of the biases of Caffe's initial values.
        drops: True if a dropout sits at its entrance.
    """

    name: str
    kernel: int
    padding: int
    groups: int
    after: str
    deviation: float
    bias: float
    drops: bool

    @property
    def pools(self) -> bool:
        """True if a max pooling follows."""
        return self.after.startswith("pool")

    @property
    def normalises(self) -> bool:
        """True if a local response normalisation follows."""
        return self.after.endswith("lrn")


LAYERS = (
    Layer("conv1", 11, 0, 1, "pool+lrn", 0.01, 0.0, False),
    Layer("conv2", 5, 2, 2, "pool+lrn", 0.01, 1.0, False),
    Layer("conv3", 3, 1, 1, "relu", 0.01, 0.0, False),
    Layer("conv4", 3, 1, 2, "relu", 0.01, 1.0, False),
    Layer("conv5", 3, 1, 2, "pool", 0.01, 1.0, False),
    Layer("fc6", 0, 0, 1, "relu", 0.005, 1.0, False),
    Layer("fc7", 0, 0, 1, "relu", 0.005, 1.0, True),
    Layer("fc8", 0, 0, 1, "", 0.01, 0.0, True),
)
STAGES = len(LAYERS)
LAYER_NAMES = tuple(layer.name for layer in LAYERS)
DROPOUT_STAGES = tuple(stage for stage, layer in enumerate(LAYERS, start=1) if layer.drops)


def layer_of(stage: int) -> Layer:
    """Return the layer of stage 1 to 8."""
    return LAYERS[stage - 1]


@dataclass(frozen=True)
class Geometry:
    """The sizes of a network.

    `store` and `crop` are sides in pixels: images are stored at store x store, the network reads crop x crop.
    `kernel` and `stride` are those of the first convolution; `channels` those of stages 1 to 5, `hidden` the widths
    of stages 6 and 7.
    """

    name: str
    store: int
    crop: int
    kernel: int
    stride: int
    channels: tuple[int, int, int, int, int]
    hidden: tuple[int, int]

    @property
    def sides(self) -> tuple[int, int, int, int, int]:
        """Return the sides of the convolutions' outputs, before pooling."""
        first = (self.crop - self.kernel) // self.stride + 1
        second = _pool_side(first)
        third = _pool_side(second)
        return first, second, third, third, third

    @property
    def blocks(self) -> int:
        """Return the side of an image in blocks of stride x stride pixels, as far as the first convolution reaches."""
        return (self.crop - self.kernel) // self.stride + -(-self.kernel // self.stride)

    def cut_shape(self, n: int) -> tuple[int, ...]:
        """Return the shape of one image at cut n: (3, crop, crop) at 0, (C, H, W) to 5, (width,) at 6 and 7."""
        if n == 0:
            return 3, self.crop, self.crop
        if n >= 6:
            return (self.hidden[n - 6],)
        side = self.sides[n - 1] if n in (3, 4) else _pool_side(self.sides[n - 1])
        return self.channels[n - 1], side, side

    def weight_shapes(self, outputs: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the weights of stages 1 to 8: (out, in / groups, k, k) and (out, in)."""
        shapes: list[tuple[int, ...]] = [(self.channels[0], 3, self.kernel, self.kernel)]
        for i, layer in enumerate(LAYERS[1:5], start=1):
            shapes.append((self.channels[i], self.channels[i - 1] // layer.groups, layer.kernel, layer.kernel))
        widths = (math.prod(self.cut_shape(5)), *self.hidden, outputs)
        return (*shapes, *((widths[i + 1], widths[i]) for i in range(3)))

    def macs(self, outputs: int) -> tuple[int, ...]:
        """Return the multiply-adds of stages 1 to 8 for one image, forward."""
        areas = (*(side * side for side in self.sides), 1, 1, 1)
        return tuple(math.prod(shape) * area for shape, area in zip(self.weight_shapes(outputs), areas, strict=True))


def _pool_side(side: int) -> int:
    return -(-(side - 3) // 2) + 1
