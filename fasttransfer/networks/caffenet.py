"""CaffeNet in eight stages.

Cut n is the output of stage n. Dropout sits at the entrance of stages 7 and 8, so that the outputs of stages 1 to 6
are functions of the image alone. Layers, initial values and sizes: the study's network (CaffeNet of 2013),
convolutions 2, 4 and 5 in two groups, pooling that rounds up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttransfer import ops
from fasttransfer.core import randomness
from fasttransfer.networks.geometry import LAYER_NAMES, STAGES, Geometry, layer_of

DEEPEST = 6
"""The last cut that is a function of the view alone: stage 7 begins with a dropout."""
_ROWS = 64  # stage 6 computes the cuts of frozen prefixes on a multiple of so many images


@dataclass(frozen=True)
class StepDropout:
    """The dropout of one training step: `keys` maps a stage (7, 8) to the Philox key of its mask.

    `step` is () int64 on the network's device. `around` is the number of images of the batch before and after those of
    this process, which other processes have: the mask is that of the whole batch.
    """

    keys: Mapping[int, int]
    step: Tensor
    probability: float
    around: tuple[int, int] = (0, 0)

    def at(self, stage: int, x: Tensor) -> Tensor:
        """Return `x`, (N, width), with the mask of a stage applied."""
        if self.around == (0, 0):
            return ops.dropout(x, self.keys[stage], self.step, self.probability)
        # The operator numbers elements from the batch's first on. The padding costs little compared with the layer that
        # follows (docs/decisions/distributed.md).
        before, after = self.around
        whole = F.pad(x, (0, 0, before, after))
        return ops.dropout(whole, self.keys[stage], self.step, self.probability)[before : before + len(x)]


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

    def forward(self, x: Tensor, drop: StepDropout | None = None) -> Tensor:
        if self.after == "pool+lrn" and self._is_one_operator_faster(x):
            return ops.conv_relu_pool_lrn(
                x, self.weight, self.bias, stride=self.stride, padding=self.padding, groups=self.groups
            )
        if self.convolves:
            x = self._convolve(x)
        else:
            x = x.flatten(1)
            if drop is not None and self.stage in drop.keys:
                x = drop.at(self.stage, x)
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


class CaffeNet(nn.Module):
    """Eight stages; `forward` runs any stretch of them.

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

    def forward(self, x: Tensor, *, start: int = 0, stop: int = STAGES, drop: StepDropout | None = None) -> Tensor:
        """Compute cut `stop` (8: logits) from cut `start` (0: images). `drop` is None outside training."""
        for stage in self.stages[start:stop]:
            x = stage(x, drop)
        return x

    def named_weights(self, start: int = 0, stop: int = STAGES) -> dict[str, nn.Parameter]:
        """Return the parameters of stages `start + 1` to `stop` under Caffe's names, e.g. conv1.weight."""
        parameters: dict[str, nn.Parameter] = {}
        for name, stage in zip(LAYER_NAMES[start:stop], self.stages[start:stop], strict=True):
            assert isinstance(stage, Stage)
            parameters[f"{name}.weight"], parameters[f"{name}.bias"] = stage.weight, stage.bias
        return parameters

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], start: int = 0, stop: int = STAGES) -> None:
        """Copy tensors named as in `named_weights` into stages `start + 1` to `stop`, rounding to their type.

        Raises:
            ValueError: a tensor has another shape than the parameter.
        """
        for name, parameter in self.named_weights(start, stop).items():
            if parameter.shape != weights[name].shape:
                raise ValueError(f"{name}: {tuple(weights[name].shape)} given, {tuple(parameter.shape)} needed")
            parameter.copy_(weights[name])


def draw_weights(
    geometry: Geometry, outputs: int, init: str, key_of: Callable[[int], int], start: int = 0, stop: int = STAGES
) -> dict[str, Tensor]:
    """Draw initial values for stages `start + 1` to `stop`, float32, under Caffe's names.

    Args:
        init: "caffe" (the paper's Gaussians and biases) or "he" (N(0, 2 / fan-in), biases 0; the last layer as in
            Caffe, so that training starts from even guesses).
        key_of: stage (1..8) -> Philox key of its values.
    """
    weights = {}
    for stage, shape in enumerate(geometry.weight_shapes(outputs)[start:stop], start=start + 1):
        deviation, bias = layer_of(stage).deviation, layer_of(stage).bias
        if init == "he":
            bias = 0
            if stage < STAGES:
                deviation = math.sqrt(2.0 / math.prod(shape[1:]))
        name = layer_of(stage).name
        weights[f"{name}.weight"] = randomness.normal(key_of(stage), shape) * deviation
        weights[f"{name}.bias"] = torch.full((shape[0],), float(bias))
    return weights


def kept_cut(n: int) -> int:
    """Return the cut that a cell frozen up to cut `n` reads: n, but 6 for n = 7, because stage 7 runs live."""
    return min(n, DEEPEST)


def cut_name(source: str, cut: int) -> str:
    """Return the name of a cut of a source in a batch, e.g. "A5"."""
    return f"{source}{cut}"


@torch.no_grad()
def rounded_cuts(net: CaffeNet, images: Tensor, cuts: Iterable[int], batch: int) -> dict[int, Tensor]:
    """Return cut -> (N, ...) bfloat16 from one forward pass: the features that frozen cells read in a study with views.

    The bits of an image's features must depend neither on its place in the batch nor on the other images. Stages 1 to 5
    satisfy that for a fixed size of the batch, so they always run on as many images as the recipe says; stage 6 does if
    each thread's share of the rows is not too small (docs/decisions/views.md). Nothing is rounded between the cuts.

    Args:
        net: the source network.
        images: (N, ...), in the form that stage 1 reads, at most `batch`; fewer are padded with zeros.
        cuts: numbers from 1 to 6.
        batch: images per pass.
    """
    n, x, start = len(images), _pad_rows(images, batch), 0
    features = {}
    for cut in sorted(set(cuts)):
        if cut == DEEPEST:
            x = _pad_rows(net(x, start=start, stop=cut - 1), -(-batch // _ROWS) * _ROWS)
            start = cut - 1
        x = net(x, start=start, stop=cut)
        features[cut], start = x[:n].to(torch.bfloat16), cut
    return features


def _pad_rows(x: Tensor, rows: int) -> Tensor:
    """Return `x` with rows of zeros appended up to `rows`."""
    if len(x) == rows:
        return x
    return torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))]).contiguous(memory_format=torch.channels_last)
