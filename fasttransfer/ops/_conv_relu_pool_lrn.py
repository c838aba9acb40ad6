"""A frozen stage 1 or 2 in one operator that stores nothing for a backward pass, not even the convolution's output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.ops import native
from fasttransfer.ops._relu_pool_lrn import relu_pool_lrn

_FEW_CHANNELS = 4  # up to here PyTorch's own convolution, made for many channels, is slower


_FASTER_DTYPES = native.find_faster_dtypes(bf16="avx512_bf16")


def conv_relu_pool_lrn(
    x: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """Compute a convolution, then `relu_pool_lrn`; has no gradient.

    The native kernel keeps the convolution's sums in float32 until it rounds the result, and may flush subnormal
    bfloat16 numbers (below 2**-126) to zero. On a GPU the kernel runs in bfloat16; in float32, and if a row is too long
    for the GPU's shared memory, two operators run instead. Under autocast x and weight are cast as for a convolution.

    Args:
        x: (N, C, H, W), float32 or bfloat16.
        weight: (K, C / groups, kernel, kernel), of x's type.
        bias: (K,) float32.

    Returns:
        (N, K, H', W') of x's type, the convolution's output pooled.

    Raises:
        RuntimeError: an argument needs a gradient; shapes or types do not fit; the convolution's output is smaller
            than 3 x 3.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        raise RuntimeError(
            "conv_relu_pool_lrn: has no gradient, call it under torch.no_grad() or run a convolution and relu_pool_lrn"
        )
    if torch.is_autocast_enabled(x.device.type):
        narrow = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(narrow), weight.to(narrow)
    if x.is_cuda and not _runs_on_a_gpu(x, weight, stride, padding):
        return conv_relu_pool_lrn_reference(x, weight, bias, stride, padding, groups)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return torch.ops.fasttransfer.conv_relu_pool_lrn(x, weight, bias.contiguous(), stride, padding, groups)


def conv_relu_pool_lrn_pays(dtype: torch.dtype, device_type: str, channels: int) -> bool:
    """Return whether `conv_relu_pool_lrn` was measured to be faster than a convolution and `relu_pool_lrn`.

    Args:
        dtype: of x and weight.
        device_type: "cpu" or "cuda".
        channels: C / groups. The numbers are in docs/decisions/frozen-stages.md.
    """
    return device_type == "cpu" and channels <= _FEW_CHANNELS and dtype in _FASTER_DTYPES


def conv_relu_pool_lrn_reference(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, groups: int
) -> Tensor:
    """Compute the operator as two: runs where there is no native kernel."""
    return relu_pool_lrn(F.conv2d(x, weight, None, stride, padding, groups=groups), bias)


def _runs_on_a_gpu(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Return whether type and sizes suit csrc/cuda/conv.cuh, which has the sums of three rows in shared memory."""
    columns = (x.shape[3] + 2 * padding - weight.shape[3]) // stride + 1
    channels = weight.shape[0]
    needed = 3 * columns * (channels + 11) * 4 + max(30 * 1024, 32 * (channels + 4))
    return x.dtype == torch.bfloat16 and needed <= _shared_memory(x.device.index or 0)


def _shared_memory(device: int) -> int:
    """Return the most bytes of shared memory that a block can have on a GPU."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _fake(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    sides = []
    for side, kernel in zip(x.shape[2:], weight.shape[2:], strict=True):
        convolved = (side + 2 * padding - kernel) // stride + 1
        sides.append((convolved - 2) // 2 + 1)
    return x.new_empty((x.shape[0], weight.shape[0], *sides)).contiguous(memory_format=torch.channels_last)


native.register("conv_relu_pool_lrn", conv_relu_pool_lrn_reference, _fake)
