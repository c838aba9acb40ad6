"""What this machine offers a study: device, precision, threads, workers."""

from __future__ import annotations

import torch

from fasttransfer import info
from fasttransfer.errors import InputError
from fasttransfer.geometry import Geometry

_SMALL_CROP = 128


def device_for(asked: str | None) -> str:
    """ "cuda" or "cpu": what was asked for, else a GPU where there is one.

    Raises:
        InputError: an unknown device, or a GPU where there is none.
    """
    if asked not in (None, "cpu", "cuda"):
        raise InputError(f"--device {asked}: choose cpu or cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: PyTorch sees no CUDA device here: choose --device cpu, or see fasttransfer info"
        )
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def precision_for(asked: str | None, device: str, geometry: Geometry) -> str:
    """ "bf16" or "fp32": what was asked for, else bf16 where the hardware multiplies it and it is known to be faster.

    On a CPU that is the paper's network; small ones stay with fp32 (docs/decisions/precision-on-cpu.md).
    """
    if asked is not None:
        return asked
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    fast = {"avx512_bf16", "amx_bf16"} & set(info.instructions())
    return "bf16" if fast and geometry.crop >= _SMALL_CROP else "fp32"


def threads_for(device: str) -> int:
    """CPU threads a network is trained with.

    Networks train beside each other, so one thread each wastes least; with more than eight cores, more threads
    each rather than more processes, whose memory adds up.
    """
    return 1 if device == "cuda" else max(1, info.cores() // 8)


def workers_for(device: str, threads: int) -> int:
    """Processes that train at the same time: one a GPU, or as many as the cores allow."""
    return torch.cuda.device_count() if device == "cuda" else max(1, info.cores() // threads)
