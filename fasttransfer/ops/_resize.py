"""Resizing of a decoded image to the side of a store's images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.ops import native

native.load()

Box = tuple[int, int, int, int]


def resize(image_hwc: Tensor, size: int, box: Box | None = None) -> Tensor:
    """Resize an image, or the part of it inside a box, to a square: bilinear with antialias.

    Gives the bits of PyTorch's `interpolate` for bytes on a CPU: weights in 16-bit fixed point, rows before columns
    with a rounding to bytes between. That is within 2 of Pillow, nearly always within 1. Pixels outside of the box have
    no influence. Runs in the calling thread, without the interpreter's lock.

    Args:
        image_hwc: (H, W, 3) uint8, contiguous.
        size: side of the result.
        box: top, left, height and width in pixels of the part; by default the whole image.

    Returns:
        (size, size, 3) uint8, contiguous.

    Raises:
        RuntimeError: the image has another type, shape or device, or the box reaches outside of it.
    """
    top, left, height, width = (0, 0, *image_hwc.shape[:2]) if box is None else box
    return torch.ops.fasttransfer.resize(image_hwc, size, top, left, height, width)


def resize_reference(image_hwc: Tensor, size: int, top: int, left: int, height: int, width: int) -> Tensor:
    """Compute the operator in plain PyTorch: runs where there is no native kernel."""
    part = image_hwc[top : top + height, left : left + width].permute(2, 0, 1)[None]
    if (height, width) == (size, size):
        return part[0].permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
    resized = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous()


# The pixels have no gradient.
native.register("resize", resize_reference, lambda image_hwc, size, *_: image_hwc.new_empty((size, size, 3)))
