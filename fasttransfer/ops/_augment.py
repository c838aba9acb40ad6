"""Crop, normalise and mirror stored images into the input of stage 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fasttransfer.ops import native


def augment(
    shards: Sequence[Tensor],
    rows: Tensor,
    mean_ssc: Tensor,
    top: Tensor,
    left: Tensor,
    mirror: Tensor,
    *,
    crop: int,
    scale: float,
    block: int = 1,
    side: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gather images of a store, crop, subtract the mean image, scale, mirror, and turn blocks of pixels into channels.

    The order is Caffe's: the mean is taken at the pixels of the crop, then the difference is mirrored. Computed in
    float32: with a scale of 1 exactly pixel - mean.

    Channel (dy * block + dx) * 3 + c of pixel (y, x) of the result is channel c of pixel (y * block + dy,
    x * block + dx) of the crop, and zero outside of the crop.

    Args:
        shards: the store's images in order, each (R_i, S, S, 3) uint8, contiguous.
        rows: (N,) int64, the numbers of the images, counted through all shards.
        mean_ssc: (S, S, 3) float32.
        top, left: (N,) int64 in [0, S - crop].
        mirror: (N,) bool.
        crop: side of the crop in pixels.
        block: side of the block of pixels that becomes one pixel of the result.
        side: side of the result; by default ceil(crop / block), the whole crop.
        dtype: float32 or bfloat16.

    Returns:
        (N, 3 * block^2, side, side), channels-last.

    Raises:
        RuntimeError: an argument has another type, shape or device; on the CPU also if a row, a top or a left lies
            outside of the store.
    """
    return torch.ops.fasttransfer.augment(
        list(shards),
        rows.contiguous(),
        mean_ssc.contiguous(),
        top.contiguous(),
        left.contiguous(),
        mirror.contiguous(),
        crop,
        block,
        -(-crop // block) if side is None else side,
        scale,
        dtype,
    )


def augment_reference(
    shards: Sequence[Tensor],
    rows: Tensor,
    mean_ssc: Tensor,
    top: Tensor,
    left: Tensor,
    mirror: Tensor,
    crop: int,
    block: int,
    side: int,
    scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """Compute the operator in plain PyTorch: runs where there is no native kernel."""
    images = _gather(shards, rows)
    steps = torch.arange(crop, device=images.device)
    at_row = (top[:, None] + steps)[:, :, None]
    at_column = torch.where(mirror[:, None], left[:, None] + (crop - 1) - steps, left[:, None] + steps)[:, None, :]
    at_image = torch.arange(len(images), device=images.device)[:, None, None]
    x = images[at_image, at_row, at_column].to(torch.float32)
    x -= mean_ssc[at_row, at_column]
    x *= scale
    if side * block != crop:
        common = min(crop, side * block)
        padded = x.new_zeros((len(x), side * block, side * block, 3))
        padded[:, :common, :common] = x[:, :common, :common]
        x = padded
    if block > 1:
        blocks = x.view(len(x), side, block, side, block, 3).transpose(2, 3)
        x = blocks.reshape(len(x), side, side, 3 * block * block)
    return x.to(dtype).permute(0, 3, 1, 2)


def _gather(shards: Sequence[Tensor], rows: Tensor) -> Tensor:
    if len(shards) == 1:
        return shards[0][rows]
    starts = torch.tensor([0, *map(len, shards)], device=rows.device).cumsum(0)
    shard_of = torch.searchsorted(starts, rows, right=True) - 1
    images = shards[0].new_empty((len(rows), *shards[0].shape[1:]))
    for i, shard in enumerate(shards):
        positions = torch.nonzero(shard_of == i).flatten()
        images[positions] = shard[rows[positions] - starts[i]]
    return images


def _fake(shards: Sequence[Tensor], rows: Tensor, *look: Any) -> Tensor:
    *_, block, side, _, dtype = look
    shape = (len(rows), 3 * block * block, side, side)
    return torch.empty(shape, dtype=dtype, device=rows.device, memory_format=torch.channels_last)


# The pixels have no gradient.
native.register("augment", augment_reference, _fake)
