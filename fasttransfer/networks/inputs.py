"""The precision of a network and the form of its input images, by kind of device."""

from __future__ import annotations

from typing import TypedDict

import torch

from fasttransfer.core import machine
from fasttransfer.networks.geometry import Geometry

_SMALL_CROP = 128


def choose_precision(choice: str | None, device: str, geometry: Geometry) -> str:
    """Return "bf16" or "fp32": the user's choice, else bf16 if the hardware multiplies it.

    On a CPU only the paper's network defaults to bf16, small ones to fp32 (docs/decisions/precision-on-cpu.md).
    """
    if choice is not None:
        return choice
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(machine.instructions())
    return "bf16" if has_bf16 and geometry.crop >= _SMALL_CROP else "fp32"


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of a precision, "fp32" or "bf16"."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


class InputForm(TypedDict):
    """The form of a network's input images, as arguments of `fasttransfer.ops.augment`."""

    block: int
    side: int
    dtype: torch.dtype


def choose_input_form(geometry: Geometry, device: str, precision: str) -> InputForm:
    """Return the form of image that the first stage reads on a device.

    On a GPU it reads blocks of pixels, so that its convolution has 48 channels and stride 1 instead of 3 and 4. oneDNN
    gains nothing from that (docs/decisions/network-forms.md).
    """
    dtype = dtype_of(precision)
    if device == "cuda":
        return {"block": geometry.stride, "side": geometry.blocks, "dtype": dtype}
    return {"block": 1, "side": geometry.crop, "dtype": dtype}
