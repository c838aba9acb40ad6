"""CaffeNet in eight stages.

Cut n is the output of stage n. Dropout sits at the entrance of stages 7 and 8, so that the outputs of stages 1 to 6
are functions of the image alone. Layers, initial values and sizes: the study's network (CaffeNet of 2013),
convolutions 2, 4 and 5 in two groups, pooling that rounds up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttransfer.core import randomness
from fasttransfer.core.toml import to_plain
from fasttransfer.networks.architecture import (
    Architecture,
    InputForm,
    KeyOf,
    Profile,
    StagedNetwork,
    StepDraws,
)
from fasttransfer.networks.caffenet_stage import Stage
from fasttransfer.networks.geometry import DROPOUT_STAGES, LAYER_NAMES, STAGES, Geometry, layer_of
from fasttransfer.networks.precision import dtype_of

_ROWS = 64  # stage 6 computes the cuts of frozen prefixes on a multiple of so many images
_LOOSE = 1.5  # factor on a step's activations: scratch memory, tensors that wait to be freed


class CaffeNet(StagedNetwork):
    """Eight stages. Frozen ones keep their dropouts in training, as in the paper.

    Args:
        geometry: sizes.
        outputs: width of the last layer.
        dtype: float32 or bfloat16, the type of images, computations and weights, except the last stage and the biases
            added after pooling, which are float32.
    """

    def __init__(self, geometry: Geometry, outputs: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.geometry = geometry
        self.outputs = outputs
        self.stages = nn.ModuleList(Stage(geometry, stage, outputs, dtype) for stage in range(1, STAGES + 1))

    def full_name(self, stage: int, name: str) -> str:
        """Return Caffe's name, e.g. conv1.weight."""
        return f"{LAYER_NAMES[stage - 1]}.{name}"

    def gradients(
        self, x: Tensor, labels: Tensor, draws: StepDraws, *, start: int, label_smoothing: float
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Compute them on a CPU stage by stage, without autograd: its bookkeeping is a fifth of a small network's step.

        On a GPU a CUDA graph leaves none of it.
        """
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or x.shape[1:] != self.geometry.cut_shape(start):
            return super().gradients(x, labels, draws, start=start, label_smoothing=label_smoothing)
        stages = [cast(Stage, stage) for stage in self.stages][start:]
        with torch.inference_mode():
            passes = []
            for stage in stages:
                passes.append(stage.forward_pass(x, draws))
                x = passes[-1].y
            loss, gradient = _loss_and_gradient(x, labels, label_smoothing)
            gradients: list[Tensor] = []
            for stage in reversed(stages):
                needs_dx = stage is not stages[0]
                dx, *of_weights = stage.backward_pass(gradient, passes.pop(), draws, needs_dx=needs_dx)
                gradients[:0] = of_weights
                gradient = gradient if dx is None else dx
        return loss, gradients

    def rows(self, stage: int, batch: int) -> int:
        """Return a multiple of 64 for stage 6, whose bits depend on the batch where a thread's share is small."""
        return -(-batch // _ROWS) * _ROWS if stage == 6 else batch


def _loss_and_gradient(logits: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a batch, and its gradient by the logits, (N, outputs) float32."""
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    even = label_smoothing / logits.shape[1]
    wanted = torch.full_like(logits, even).scatter_(1, labels[:, None], 1 - label_smoothing + even)
    return loss, (logits.softmax(1) - wanted) / len(labels)


@dataclass(frozen=True)
class CaffeNetArchitecture(Geometry, Architecture):
    """CaffeNet in the sizes of a geometry: native operators, the task's mean image, Caffe's initial values."""

    @property
    def stages(self) -> tuple[str, ...]:
        return LAYER_NAMES

    @property
    def random_stages(self) -> tuple[int, ...]:
        return DROPOUT_STAGES

    @property
    def drawing_when_frozen(self) -> tuple[int, ...]:
        return DROPOUT_STAGES

    @property
    def channel_mean(self) -> None:
        return None

    @property
    def has_batch_norm(self) -> bool:
        return False

    @property
    def inits(self) -> tuple[str, ...]:
        """Return "caffe" (the paper's Gaussians and biases) and "he" (N(0, 2 / fan-in), biases 0).

        The last layer of "he" is as in Caffe, so that training starts from even guesses.
        """
        return "caffe", "he"

    def input_form(self, device: str, dtype: torch.dtype) -> InputForm:
        """Return images for a CPU, blocks of pixels for a GPU.

        Its first convolution then has 48 channels and stride 1 instead of 3 and 4. oneDNN gains nothing from that
        (docs/decisions/network-forms.md).
        """
        if device == "cuda":
            return {"block": self.stride, "side": self.blocks, "dtype": dtype}
        return {"block": 1, "side": self.crop, "dtype": dtype}

    def build(
        self, outputs: int, precision: str, device: torch.device, *, start: int = 0, stop: int | None = None
    ) -> CaffeNet:
        with torch.device("meta"):
            net = CaffeNet(self, outputs, dtype_of(precision))
        del net.stages[STAGES if stop is None else stop :]
        for stage in net.stages[start:]:
            stage.to_empty(device=device)
        return net

    def draw(
        self, outputs: int, init: str, key_of: KeyOf, start: int = 0, stop: int | None = None, *, first: float = 1.0
    ) -> dict[str, Tensor]:
        weights = {}
        for stage, shape in list(enumerate(self.weight_shapes(outputs), start=1))[start:stop]:
            layer = layer_of(stage)
            deviation, bias = layer.deviation, layer.bias
            if init == "he":
                bias = 0
                if stage < STAGES:
                    deviation = math.sqrt(2.0 / math.prod(shape[1:]))
            weights[f"{layer.name}.weight"] = randomness.normal(key_of(stage), shape) * deviation
            weights[f"{layer.name}.bias"] = torch.full((shape[0],), float(bias))
        if start == 0 and first != 1.0:
            weights[f"{LAYER_NAMES[0]}.weight"] *= first
        return weights

    def names(self, start: int = 0, stop: int | None = None) -> tuple[str, ...]:
        return tuple(f"{name}.{kind}" for name in LAYER_NAMES[start:stop] for kind in ("weight", "bias"))

    def profile(self, outputs: int) -> Profile:
        weights = tuple(math.prod(shape) + shape[0] for shape in self.weight_shapes(outputs))
        cuts = (*(self.cut_shape(n) for n in range(STAGES)), (outputs,))
        return Profile(cuts, self.macs(outputs), weights, weights)

    def step_bytes(self, outputs: int, batch: int, precision: str, start: int) -> int:
        """Return the most bytes of activations and gradients in a training step of the stages behind cut `start`.

        Kept for the backward pass are each stage's output and, of a normalised one, what it pooled; beside them lie
        the largest output of a convolution and the gradient of its input.
        """
        value = 2 if precision == "bf16" else 4
        activations = [math.prod(self.cut_shape(n)) if n < STAGES else outputs for n in range(start, STAGES + 1)]
        passing = [0]
        for stage in range(start + 1, STAGES + 1):
            if layer_of(stage).kernel:
                convolved = self.channels[stage - 1] * self.sides[stage - 1] ** 2
                passing.append(convolved + (activations[stage - 1 - start] if stage > start + 1 else 0))
            if layer_of(stage).normalises:
                activations[stage - start] *= 2
        gradients = sum(math.prod(shape) for shape in self.weight_shapes(outputs)[start:])
        return int(value * (_LOOSE * batch * (sum(activations[1:]) + max(passing)) + gradients))

    def facts(self) -> dict[str, object]:
        """Return the sizes; the name of a geometry does not count."""
        sizes = to_plain(asdict(self))
        del sizes["name"]
        return {"network": "CaffeNet", **sizes}


# The paper's network, and a small one for 64-pixel images with the same stages and a smaller first kernel.
CAFFENET = CaffeNetArchitecture("caffenet", 256, 227, 11, 4, (96, 256, 384, 384, 256), (4096, 4096))
CAFFENET_MINI = CaffeNetArchitecture("caffenet-mini", 64, 58, 7, 3, (32, 64, 96, 96, 64), (256, 256))
