"""What this machine offers a study: device, precision, threads, workers."""

from __future__ import annotations

import ctypes
import sys
from typing import TypedDict

import torch

from fasttransfer import info
from fasttransfer.errors import InputError
from fasttransfer.geometry import Geometry

_SMALL_CROP = 128

# Options of glibc's mallopt, and what they are set to.
_KEEP = {"M_MMAP_THRESHOLD": (-3, 1 << 30), "M_TRIM_THRESHOLD": (-1, (1 << 31) - 1), "M_TOP_PAD": (-2, 64 << 20)}


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
    """ "bf16" or "fp32": what was asked for, else bf16 where the hardware multiplies it.

    On a CPU that goes for the paper's network; small ones stay with fp32 (docs/decisions/precision-on-cpu.md).
    """
    if asked is not None:
        return asked
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    fast = {"avx512_bf16", "amx_bf16"} & set(info.instructions())
    return "bf16" if fast and geometry.crop >= _SMALL_CROP else "fp32"


def settle_in(device: str, threads: int, index: int) -> torch.device:
    """Makes this process, the `index`-th of its kind here, compute as a study says; returns its device.

    All that train, time or keep what is trained on have to set the same: bits depend on it.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = True
    if device == "cuda":
        found = torch.device("cuda", index % torch.cuda.device_count())
        torch.cuda.set_device(found)  # streams and graphs are of the current one
        return found
    keep_freed_memory()
    return torch.device("cpu")


def keep_freed_memory() -> None:
    """Makes this process keep the memory of freed tensors for the next ones, where glibc allocates it.

    By default every tensor of more than 32 MiB is mapped afresh and costs a page fault every 4 KiB
    (docs/decisions/memory.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in _KEEP.values():
            mallopt(option, value)


def dtype_of(precision: str) -> torch.dtype:
    """What networks compute in."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


class Entrance(TypedDict):
    """How pictures come to a network, in the words of `fasttransfer.ops.augment`."""

    block: int
    side: int
    dtype: torch.dtype


def entrance(geometry: Geometry, device: str, precision: str) -> Entrance:
    """What the first stage reads on a device.

    On a GPU blocks of pixels, so that its convolution has 48 channels and stride 1 instead of 3 and 4. oneDNN gains
    nothing from that (docs/decisions/network-forms.md).
    """
    dtype = dtype_of(precision)
    if device == "cuda":
        return {"block": geometry.stride, "side": geometry.blocks, "dtype": dtype}
    return {"block": 1, "side": geometry.crop, "dtype": dtype}


def threads_for(device: str) -> int:
    """CPU threads a network is trained with.

    Networks train beside each other, so one thread each wastes least; with more than eight cores, more threads
    each rather than more processes, whose memory adds up.
    """
    return 1 if device == "cuda" else max(1, info.cores() // 8)


def workers_for(device: str, threads: int) -> int:
    """Processes that train at the same time: one a GPU, or as many as the cores allow."""
    return torch.cuda.device_count() if device == "cuda" else max(1, info.cores() // threads)
