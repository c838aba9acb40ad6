"""The Python face of the operators: what each computes, in plain PyTorch.

Shapes: N pictures, C channels, H x W pixels, S the side of a stored picture, K the side of a crop. Activations are
NCHW tensors in channels-last memory. Each function is the reference a native kernel is held against; where the
native library has the operator (see `fasttransfer.native`), it is used instead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer._dropout import dropout

__all__ = ["augment", "dropout", "relu_pool", "relu_pool_lrn", "sgd_step"]

# Caffe's local response normalisation across channels (paper README: size 5, alpha / size, beta 3/4, k 1).
LRN_SIZE = 5
LRN_ALPHA = 1e-4


def augment(
    pictures_nssc: Tensor,
    mean_ssc: Tensor,
    top: Tensor,
    left: Tensor,
    mirror: Tensor,
    *,
    crop: int,
    scale: float,
) -> Tensor:
    """Crop, subtract the mean picture, scale and mirror.

    Caffe's order: the mean is taken at the pixels that were cropped, then the difference is mirrored.

    Args:
        pictures_nssc: (N, S, S, 3) uint8.
        mean_ssc: (S, S, 3) float32.
        top, left: (N,) int64 in [0, S - crop].
        mirror: (N,) bool.

    Returns:
        (N, 3, crop, crop) float32, channels-last.
    """
    steps = torch.arange(crop, device=pictures_nssc.device)
    rows = (top[:, None] + steps)[:, :, None]
    columns = torch.where(mirror[:, None], left[:, None] + (crop - 1) - steps, left[:, None] + steps)[:, None, :]
    which = torch.arange(len(pictures_nssc), device=pictures_nssc.device)[:, None, None]
    x = pictures_nssc[which, rows, columns].to(torch.float32)
    x -= mean_ssc[rows, columns]
    if scale != 1.0:
        x *= scale
    return x.permute(0, 3, 1, 2)


def relu_pool(x: Tensor) -> Tensor:
    """ReLU, then 3x3 max pooling with stride 2, the output size rounded up (Caffe's rule).

    Args:
        x: (N, C, H, W).

    Returns:
        (N, C, ceil((H - 3) / 2) + 1, ceil((W - 3) / 2) + 1), H and W at least 3.
    """
    # Pooling first gives the same values and leaves a quarter of the pixels to the ReLU.
    return F.relu(F.max_pool2d(x, 3, 2, ceil_mode=True))


def relu_pool_lrn(x: Tensor) -> Tensor:
    """`relu_pool`, then local response normalisation: y / (1 + alpha / 5 * sum of y^2 over 5 channels)^(3/4).

    Args:
        x: (N, C, H, W).

    Returns:
        As `relu_pool`. The normalisation is computed in float32 at least.
    """
    y = relu_pool(x)
    wide = y if y.dtype == torch.float64 else y.float()
    # The sum over neighbouring channels is a product with a banded matrix: one pass, where slices or a
    # 3-d average pool take five to fifty. Autocast would round the sums to bfloat16.
    with torch.autocast(x.device.type, enabled=False):
        sums = F.conv2d(wide * wide, _band(y.shape[1], wide.dtype, y.device))
        root = torch.rsqrt(1.0 + (LRN_ALPHA / LRN_SIZE) * sums)
        return (wide * (root * torch.sqrt(root))).to(y.dtype)


@functools.lru_cache(maxsize=16)
def _band(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    index = torch.arange(channels, device=device)
    near = (index[:, None] - index).abs() <= LRN_SIZE // 2
    return near.to(dtype).view(channels, channels, 1, 1)


@torch.no_grad()
def sgd_step(
    weights: Sequence[Tensor],
    velocities: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    lr: Sequence[float],
    momentum: float,
    decay: Sequence[float],
) -> None:
    """Caffe's SGD, in place: v = momentum * v + lr * (g + decay * w); w = w - v.

    The rate is inside the velocity: when it drops, what was gathered at the old rate still carries on.
    PyTorch's SGD applies the rate to the whole velocity and differs from there on.

    Args:
        weights, velocities, gradients: one tensor a parameter, float32, same shapes.
        lr, decay: one number a parameter.
    """
    weights, velocities = list(weights), list(velocities)
    steps = torch._foreach_add(list(gradients), torch._foreach_mul(weights, list(decay)))
    torch._foreach_mul_(steps, list(lr))
    torch._foreach_mul_(velocities, momentum)
    torch._foreach_add_(velocities, steps)
    torch._foreach_sub_(weights, velocities)
