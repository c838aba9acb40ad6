"""CaffeNet in eight stages.

Cut n is the output of stage n. Dropout sits at the entrance of stages 7 and 8, so that the outputs of stages 1 to 6
are functions of the image alone. Layers, initial values and sizes: the study's network (CaffeNet of 2013),
convolutions 2, 4 and 5 in two groups, pooling that rounds up.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttransfer import ops
from fasttransfer.core import randomness
from fasttransfer.core.toml import to_plain
from fasttransfer.networks.architecture import Architecture, InputForm, KeyOf, Profile, StagedNetwork, StepDraws
from fasttransfer.networks.geometry import DROPOUT_STAGES, LAYER_NAMES, STAGES, Geometry, layer_of
from fasttransfer.networks.precision import dtype_of

_ROWS = 64  # stage 6 computes the cuts of frozen prefixes on a multiple of so many images
_LOOSE = 1.5  # factor on a step's activations: scratch memory, tensors that wait to be freed


class Stage(nn.Module):
    """One stage: a layer with pooling, normalisation or ReLU. Input and output have `Geometry.cut_shape`, batch first.

    The first stage reads images, or images that `ops.augment` turned into blocks of the stage's stride: it is then a
    convolution with stride 1 that sums the same products.
    """

    def __init__(self, geometry: Geometry, stage: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.stage = stage
        layer = layer_of(stage)
        self.stride = geometry.stride if stage == 1 else 1
        self.padding, self.groups, self.after, self.pools = layer.padding, layer.groups, layer.after, layer.pools
        self.convolves = layer.kernel > 0
        if stage == STAGES:
            dtype = torch.float32  # logits rounded to 8 bits tie
        shape = geometry.weight_shapes(outputs)[stage - 1]
        format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype).contiguous(memory_format=format))
        # The operators that pool add the bias too, in float32.
        self.bias = nn.Parameter(torch.zeros(shape[0], dtype=torch.float32 if self.pools else dtype))

    def forward(self, x: Tensor, draws: StepDraws | None = None) -> Tensor:
        if self.after == "pool+lrn" and self._is_one_operator_faster(x):
            return ops.conv_relu_pool_lrn(
                x, self.weight, self.bias, stride=self.stride, padding=self.padding, groups=self.groups
            )
        if self.convolves:
            x = self._convolve(x)
        else:
            x = x.flatten(1)
            if draws is not None and self.stage in draws.keys:
                x = draws.dropout(self.stage, x)
            x = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        match self.after:
            case "pool+lrn":
                return ops.relu_pool_lrn(x, self.bias)
            case "pool":
                return ops.relu_pool(x, self.bias)
            case "relu":
                return F.relu(x)
        return x

    def _is_one_operator_faster(self, x: Tensor) -> bool:
        """Return whether no gradient is needed and one operator for the whole stage is faster."""
        if torch.is_grad_enabled() or x.shape[1] != self.weight.shape[1] * self.groups:
            return False
        return ops.conv_relu_pool_lrn_pays(x.dtype, x.device.type, self.weight.shape[1])

    def _convolve(self, x: Tensor) -> Tensor:
        bias = None if self.pools else self.bias
        if self.stage == 1 and x.shape[1] != 3:
            return F.conv2d(x, weights_for_blocks(self.weight, self.stride), bias)
        if self.groups == 2 and x.is_cuda:  # cuDNN is slow at groups in channels-last memory, oneDNN is not
            return conv_in_halves(x, self.weight, bias, self.padding)
        if self.pools:
            return ops.conv2d_to_pool(x, self.weight, stride=self.stride, padding=self.padding, groups=self.groups)
        return F.conv2d(x, self.weight, bias, self.stride, self.padding, groups=self.groups)


def conv_in_halves(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Compute a convolution in two groups as two dense ones on halves of the channels."""
    biases = bias.chunk(2) if bias is not None else (None, None)
    parts = zip(x.chunk(2, 1), weight.chunk(2), biases, strict=True)
    return torch.cat([F.conv2d(x, w, b, padding=padding) for x, w, b in parts], 1)


def weights_for_blocks(weight: Tensor, block: int) -> Tensor:
    """Return the weights of a convolution of stride `block`, for stride 1 on blocks of pixels turned into channels.

    Args:
        weight: (K, C, k, k).

    Returns:
        (K, block^2 * C, ceil(k / block), ceil(k / block)), channels in the order of `ops.augment`, zero where a block
        reaches beyond the kernel's edge.
    """
    outputs, channels, kernel, _ = weight.shape
    side = -(-kernel // block)
    over = side * block - kernel
    blocks = F.pad(weight, (0, over, 0, over)).reshape(outputs, channels, side, block, side, block)
    blocks = blocks.permute(0, 3, 5, 1, 2, 4).reshape(outputs, block * block * channels, side, side)
    return blocks.contiguous(memory_format=torch.channels_last)


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

    def rows(self, stage: int, batch: int) -> int:
        """Return a multiple of 64 for stage 6, whose bits depend on the batch where a thread's share is small."""
        return -(-batch // _ROWS) * _ROWS if stage == 6 else batch


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
