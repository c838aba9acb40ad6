"""CaffeNet in eight stages.

Cut n is the output of stage n. Dropout sits at the entrance of stages 7 and 8, so that the outputs of stages 1 to 6
are functions of the picture alone. Table of layers, initial values and sizes: the study's network (CaffeNet of 2013),
convolutions 2, 4 and 5 in two groups, pooling that rounds up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttransfer import ops, randomness
from fasttransfer.geometry import CONVOLUTIONS, STAGES, Geometry

LAYER_NAMES = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
DROPOUT_STAGES = (7, 8)

# Standard deviation and bias of Caffe's initial values, stages 1 to 8.
_CAFFE_INIT = ((0.01, 0), (0.01, 1), (0.01, 0), (0.01, 1), (0.01, 1), (0.005, 1), (0.005, 1), (0.01, 0))


@dataclass(frozen=True)
class Drop:
    """The dropout of one training step: `keys` maps a stage (7, 8) to the Philox key of its mask."""

    keys: Mapping[int, int]
    step: int
    probability: float


class Stage(nn.Module):
    """One stage: its layer and what follows it. Input and output as in `Geometry.cut_shape`, batch first."""

    def __init__(self, geometry: Geometry, stage: int, outputs: int) -> None:
        super().__init__()
        self.stage = stage
        self.stride, self.padding, self.groups = geometry.stride, 0, 1
        self.after = "pool+lrn" if stage == 1 else "relu" if stage < STAGES else ""
        if stage in CONVOLUTIONS:
            self.stride = 1
            _, self.padding, self.groups, self.after = CONVOLUTIONS[stage]
        shape = geometry.weight_shapes(outputs)[stage - 1]
        format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        self.weight = nn.Parameter(torch.zeros(shape).contiguous(memory_format=format))
        self.bias = nn.Parameter(torch.zeros(shape[0]))

    def forward(self, x: Tensor, drop: Drop | None = None) -> Tensor:
        if self.stage <= 5:
            x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        else:
            x = x.flatten(1)
            if drop is not None and self.stage in drop.keys:
                x = ops.dropout(x, drop.keys[self.stage], drop.step, drop.probability)
            x = F.linear(x, self.weight, self.bias)
        match self.after:
            case "pool+lrn":
                return ops.relu_pool_lrn(x)
            case "pool":
                return ops.relu_pool(x)
            case "relu":
                return F.relu(x)
        return x


class CaffeNet(nn.Module):
    """Eight stages; `forward` runs any stretch of them.

    Args:
        geometry: sizes.
        outputs: width of the last layer.
    """

    def __init__(self, geometry: Geometry, outputs: int) -> None:
        super().__init__()
        self.geometry = geometry
        self.outputs = outputs
        self.stages = nn.ModuleList(Stage(geometry, stage, outputs) for stage in range(1, STAGES + 1))

    def forward(self, x: Tensor, *, start: int = 0, stop: int = STAGES, drop: Drop | None = None) -> Tensor:
        """From cut `start` (0: pictures) to cut `stop` (8: logits). `drop` is None outside training."""
        for stage in self.stages[start:stop]:
            x = stage(x, drop)
        return x

    def named_weights(self, start: int = 0, stop: int = STAGES) -> dict[str, nn.Parameter]:
        """Parameters of stages `start + 1` to `stop` under Caffe's names, e.g. conv1.weight."""
        found: dict[str, nn.Parameter] = {}
        for name, stage in zip(LAYER_NAMES[start:stop], self.stages[start:stop], strict=True):
            assert isinstance(stage, Stage)
            found[f"{name}.weight"], found[f"{name}.bias"] = stage.weight, stage.bias
        return found

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], start: int = 0, stop: int = STAGES) -> None:
        """Copies tensors named as in `named_weights` into stages `start + 1` to `stop`."""
        for name, parameter in self.named_weights(start, stop).items():
            if parameter.shape != weights[name].shape:
                raise ValueError(f"{name}: {tuple(weights[name].shape)} given, {tuple(parameter.shape)} needed")
            parameter.copy_(weights[name])


def initial_weights(geometry: Geometry, outputs: int, init: str, key_of: Callable[[int], int]) -> dict[str, Tensor]:
    """Fresh values for every stage, float32, under Caffe's names.

    Args:
        init: "caffe" (the paper's Gaussians and biases) or "he" (N(0, 2 / fan-in), biases 0; the last layer as in
            Caffe, so that training starts from even odds).
        key_of: stage (1..8) -> Philox key of its values.
    """
    weights = {}
    for stage, shape in enumerate(geometry.weight_shapes(outputs), start=1):
        deviation, bias = _CAFFE_INIT[stage - 1]
        if init == "he":
            bias = 0
            if stage < STAGES:
                deviation = math.sqrt(2.0 / math.prod(shape[1:]))
        name = LAYER_NAMES[stage - 1]
        weights[f"{name}.weight"] = randomness.normal(key_of(stage), shape) * deviation
        weights[f"{name}.bias"] = torch.full((shape[0],), float(bias))
    return weights
