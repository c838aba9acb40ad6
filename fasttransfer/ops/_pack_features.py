"""Lossless packing of features without their zeros: a bit for every element, and the nonzero values.

Behind a ReLU most features are zero. Packed features take less memory, disk and bandwidth to a GPU, and unpacking them
is faster than reading the unpacked ones from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.ops import native

_WORD = 64  # the mask of an image is padded to a multiple of so many elements


class PackedFeatures(NamedTuple):
    """N images of E elements each, packed.

    Attributes:
        mask: (N, ceil(E / 64) * 8) uint8. Element i of an image, in memory order, is bit i % 8 of byte i // 8: 0 if its
            16 bits are all 0. Bits beyond the last element are 0.
        values: (K,) bfloat16, the nonzero elements of all images, one image after another.
        offsets: (N + 1,) int64. Image i has the values from offsets[i] to offsets[i + 1].
    """

    mask: Tensor
    values: Tensor
    offsets: Tensor


def pack_features(x: Tensor) -> PackedFeatures:
    """Pack features losslessly: only the bit pattern 0 counts as zero, not the negative zero.

    On a GPU this waits for the stream to learn the number of values. There is no gradient.

    Args:
        x: (N, C, H, W) bfloat16 in channels-last memory, or (N, E) contiguous.

    Raises:
        RuntimeError: x has another type or layout.
    """
    return PackedFeatures(*torch.ops.fasttransfer.pack_features(_flat(x)))


def unpack_features(packed: PackedFeatures, shape: Sequence[int], rows: Tensor | None = None) -> Tensor:
    """Unpack features to the bits that were packed.

    Args:
        packed: the result of `pack_features`.
        shape: of one image: (C, H, W) or (E,).
        rows: (M,) int64 on the device of `packed`, the numbers of the images, in any order; by default all.

    Returns:
        (M, C, H, W) in channels-last memory or (M, E), bfloat16.

    Raises:
        RuntimeError: the tensors do not belong together; on the CPU also if a row does not exist or a mask does not fit
            its number of values. A GPU, which would have to be waited for, takes the nearest row, and missing values
            are zero.
    """
    if rows is None:
        rows = torch.arange(packed.mask.shape[0], device=packed.mask.device)
    y = torch.ops.fasttransfer.unpack_features(*packed, rows, prod(shape))
    if len(shape) == 1:
        return y
    channels, height, width = shape
    return y.view(-1, height, width, channels).permute(0, 3, 1, 2)


def _flat(x: Tensor) -> Tensor:
    """Return x as (N, E), in the order of memory."""
    if x.dim() != 4:
        return x
    if not x.is_contiguous(memory_format=torch.channels_last):
        raise RuntimeError(
            "pack_features: x must be in channels-last memory, its elements are numbered in memory order"
        )
    return x.permute(0, 2, 3, 1).flatten(1)


def pack_reference(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the operator in plain PyTorch: runs where there is no native kernel."""
    if x.dtype != torch.bfloat16:
        raise RuntimeError(f"pack_features: x must be bfloat16, not {x.dtype}")
    if x.dim() != 2 or not x.is_contiguous():
        raise RuntimeError("pack_features: x must be (images, elements), contiguous")
    words = x.view(torch.int16)
    nonzero = words != 0
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=x.device)
    in_bytes = F.pad(nonzero.byte(), (0, -x.shape[1] % _WORD)).unflatten(1, (-1, 8))
    mask = (in_bytes * weights).sum(2, dtype=torch.uint8)
    offsets = F.pad(nonzero.sum(1).cumsum(0), (1, 0))
    return mask, words[nonzero].view(torch.bfloat16), offsets


def unpack_reference(mask: Tensor, values: Tensor, offsets: Tensor, rows: Tensor, elements: int) -> Tensor:
    """Compute the operator in plain PyTorch: runs where there is no native kernel."""
    _check_packed(mask, values, offsets, rows, elements)
    n = mask.shape[0]
    if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= n):
        raise RuntimeError(f"unpack_features: an image is asked for that is not there, there are {n}")
    bits = mask[rows][:, :, None] >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
    nonzero = bits.flatten(1).bool()
    begin, end = offsets[rows], offsets[rows + 1]
    if not bool(((begin >= 0) & (begin <= end) & (end <= values.numel())).all()):
        raise RuntimeError(f"unpack_features: an image has values that are not there, there are {values.numel()}")
    if not torch.equal(nonzero.sum(1), end - begin) or bool(nonzero[:, elements:].any()):
        raise RuntimeError("unpack_features: the mask of an image does not fit its number of values")
    y = torch.zeros((len(rows), elements), dtype=torch.int16, device=mask.device)
    nonzero = nonzero[:, :elements]
    at = begin[:, None] + nonzero.cumsum(1) - 1
    y[nonzero] = values.view(torch.int16)[at[nonzero]]
    return y.view(torch.bfloat16)


def _check_packed(mask: Tensor, values: Tensor, offsets: Tensor, rows: Tensor, elements: int) -> None:
    bytes_ = -(-elements // _WORD) * 8
    device, n = mask.device, mask.shape[0] if mask.dim() == 2 else 0
    if elements < 0:
        raise RuntimeError(f"unpack_features: elements must be at least 0, not {elements}")
    if mask.dtype != torch.uint8 or mask.dim() != 2 or mask.shape[1] != bytes_ or not mask.is_contiguous():
        raise RuntimeError(
            f"unpack_features: mask must be (images, {bytes_}) uint8, contiguous, for {elements} elements"
        )
    if values.dtype != torch.bfloat16 or values.dim() != 1 or not values.is_contiguous() or values.device != device:
        raise RuntimeError("unpack_features: values must be bfloat16, one after another, on mask's device")
    if offsets.dtype != torch.int64 or offsets.shape != (n + 1,) or offsets.device != device:
        raise RuntimeError(f"unpack_features: offsets must be {n + 1} int64 on mask's device")
    if rows.dtype != torch.int64 or rows.dim() != 1 or rows.device != device:
        raise RuntimeError("unpack_features: rows must be int64, one after another, on mask's device")
    if len(rows) and n == 0:
        raise RuntimeError(f"unpack_features: {len(rows)} images are asked for, none is there")


def _fake_pack(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, elements = x.shape
    count = torch.library.get_ctx().new_dynamic_size()
    mask = x.new_empty((n, (elements + _WORD - 1) // _WORD * 8), dtype=torch.uint8)
    return mask, x.new_empty(count), x.new_empty(n + 1, dtype=torch.int64)


def _fake_unpack(mask: Tensor, values: Tensor, offsets: Tensor, rows: Tensor, elements: int) -> Tensor:
    return values.new_empty((rows.shape[0], elements))


# Frozen features have no gradient.
native.register("pack_features", pack_reference, _fake_pack)
native.register("unpack_features", unpack_reference, _fake_unpack)
