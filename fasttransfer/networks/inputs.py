"""What a network computes in, and in which form images reach its first stage on each kind of device."""

from __future__ import annotations

from typing import TypedDict

import torch

from fasttransfer.core import machine
from fasttransfer.networks.geometry import Geometry

_SMALL_CROP = 128


def choose_precision(asked: str | None, device: str, geometry: Geometry) -> str:
    """ "bf16" or "fp32": what was asked for, else bf16 where the hardware multiplies it.

    On a CPU that goes for the paper's network; small ones stay with fp32 (docs/decisions/precision-on-cpu.md).
    """
    if asked is not None:
        return asked
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    fast = {"avx512_bf16", "amx_bf16"} & set(machine.instructions())
    return "bf16" if fast and geometry.crop >= _SMALL_CROP else "fp32"


def dtype_of(precision: str) -> torch.dtype:
    """What networks compute in."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


class InputForm(TypedDict):
    """How images come to a network, in the words of `fasttransfer.ops.augment`."""

    block: int
    side: int
    dtype: torch.dtype


def choose_input_form(geometry: Geometry, device: str, precision: str) -> InputForm:
    """What the first stage reads on a device.

    On a GPU blocks of pixels, so that its convolution has 48 channels and stride 1 instead of 3 and 4. oneDNN gains
    nothing from that (docs/decisions/network-forms.md).
    """
    dtype = dtype_of(precision)
    if device == "cuda":
        return {"block": geometry.stride, "side": geometry.blocks, "dtype": dtype}
    return {"block": 1, "side": geometry.crop, "dtype": dtype}
