"""A stage of CaffeNet, its forward and its backward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttransfer import ops
from fasttransfer.networks.architecture import StepDraws
from fasttransfer.networks.geometry import STAGES, Geometry, layer_of

_OPERATORS = {
    "pool": (torch.ops.fasttransfer.relu_pool, torch.ops.fasttransfer.relu_pool_backward),
    "pool+lrn": (torch.ops.fasttransfer.relu_pool_lrn, torch.ops.fasttransfer.relu_pool_lrn_backward),
}


class ForwardPass(NamedTuple):
    """The result of a stage, and what its backward pass reads.

    Attributes:
        y: the result.
        x: what the stage was given.
        rows: what a fully connected layer multiplied: x, flat, after dropout.
        sides: of the output of a convolution that is pooled.
        kept: what the pooling operator kept.
    """

    y: Tensor
    x: Tensor
    rows: Tensor | None = None
    sides: tuple[int, ...] = ()
    kept: tuple[Tensor, ...] = ()


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
        if not self.convolves:
            y = F.linear(self._rows(x, draws), self.weight, self.bias)
            return F.relu(y) if self.after == "relu" else y
        if not self.pools:
            return self._convolve(x)
        pool = ops.relu_pool_lrn if self.after == "pool+lrn" else ops.relu_pool
        return pool(self._convolve(x), self.bias)

    def forward_pass(self, x: Tensor, draws: StepDraws) -> ForwardPass:
        """Compute the stage on a CPU in inference mode; `backward_pass` then does what autograd would."""
        if not self.convolves:
            rows = self._rows(x, draws)
            y = F.linear(rows, self.weight, self.bias)
            return ForwardPass(F.relu(y) if self.after == "relu" else y, x, rows)
        if not self.pools:
            return ForwardPass(self._convolve(x), x)
        convolved = self._convolve(x).contiguous(memory_format=torch.channels_last)
        y, *kept = _OPERATORS[self.after][0](convolved, self.bias, True)
        return ForwardPass(y, x, None, tuple(convolved.shape[2:]), tuple(kept))

    def backward_pass(
        self, gradient: Tensor, made: ForwardPass, draws: StepDraws, *, needs_dx: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the gradients of x, where it is needed, weight and bias from that of y."""
        if made.rows is not None:
            return self._backward_of_linear(gradient, made, draws, needs_dx)
        x, weight, padding, groups = made.x, self.weight, self.padding, self.groups
        if not self.pools:
            return ops.conv_relu_backward(
                gradient, made.y, x, weight, padding=padding, groups=groups, needs_dx=needs_dx
            )
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        gradient, dbias = _OPERATORS[self.after][1](gradient, *made.kept, *made.sides)
        dx, dweight = ops.conv2d_to_pool_backward(
            gradient, x, weight, stride=self.stride, padding=padding, groups=groups, needs_dx=needs_dx
        )
        return dx, dweight, dbias

    def _backward_of_linear(
        self, gradient: Tensor, made: ForwardPass, draws: StepDraws, needs_dx: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        assert made.rows is not None
        if self.after == "relu":
            gradient = torch.ops.aten.threshold_backward(gradient, made.y, 0)
        dx = None
        if needs_dx:
            dx = (gradient @ self.weight).to(made.x.dtype)
            if self.stage in draws.keys:
                dx = draws.dropout(self.stage, dx)  # the same mask and factor
            dx = dx.view(made.x.shape)
        return dx, gradient.t() @ made.rows, gradient.sum(0)

    def _rows(self, x: Tensor, draws: StepDraws | None) -> Tensor:
        """Return what a fully connected layer multiplies."""
        x = x.flatten(1)
        if draws is not None and self.stage in draws.keys:
            x = draws.dropout(self.stage, x)
        return x.to(self.weight.dtype)

    def _is_one_operator_faster(self, x: Tensor) -> bool:
        """Return whether no gradient is needed and one operator for the whole stage is faster."""
        if torch.is_grad_enabled() or x.shape[1] != self.weight.shape[1] * self.groups:
            return False
        return ops.conv_relu_pool_lrn_pays(x.dtype, x.device.type, self.weight.shape[1])

    def _convolve(self, x: Tensor) -> Tensor:
        """Return a convolution that is pooled next, or else one with bias and ReLU."""
        if self.stage == 1 and x.shape[1] != 3:
            return F.conv2d(x, weights_for_blocks(self.weight, self.stride))
        if self.groups == 2 and x.is_cuda:  # cuDNN is slow at groups in channels-last memory, oneDNN is not
            bias = None if self.pools else self.bias
            y = conv_in_halves(x, self.weight, bias, self.padding)
            return y if self.pools else F.relu(y)
        if self.pools:
            return ops.conv2d_to_pool(x, self.weight, stride=self.stride, padding=self.padding, groups=self.groups)
        return ops.conv_relu(x, self.weight, self.bias, padding=self.padding, groups=self.groups)


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
