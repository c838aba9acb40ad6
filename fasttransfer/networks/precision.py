"""The precision of a network's computations, by kind of device."""

from __future__ import annotations

import torch

from fasttransfer.core import machine

_SMALL_CROP = 128


def choose_precision(choice: str | None, device: str, crop: int) -> str:
    """Return "bf16" or "fp32": the user's choice, else bf16 if the hardware multiplies it.

    On a CPU only networks of large images default to bf16, others to fp32 (docs/decisions/precision-on-cpu.md).

    Args:
        crop: side of the images that the network reads.
    """
    if choice is not None:
        return choice
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(machine.instructions())
    return "bf16" if has_bf16 and crop >= _SMALL_CROP else "fp32"


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of a precision, "fp32" or "bf16"."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
