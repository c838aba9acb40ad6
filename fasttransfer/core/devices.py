"""What this machine offers a study: device, threads, workers."""

from __future__ import annotations

import ctypes
import sys

import torch

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError

# Options of glibc's mallopt, and what they are set to.
_KEEP = {"M_MMAP_THRESHOLD": (-3, 1 << 30), "M_TRIM_THRESHOLD": (-1, (1 << 31) - 1), "M_TOP_PAD": (-2, 64 << 20)}


def choose_device(asked: str | None) -> str:
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


def configure_process(device: str, threads: int, index: int) -> torch.device:
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


def choose_threads(device: str) -> int:
    """CPU threads per network is trained with.

    Networks train beside each other, so one thread each wastes least; with more than eight cores, more threads
    each rather than more processes, whose memory adds up.
    """
    return 1 if device == "cuda" else max(1, machine.cores() // 8)


def count_workers(device: str, threads: int) -> int:
    """Processes that train at the same time: one a GPU, or as many as the cores allow."""
    return torch.cuda.device_count() if device == "cuda" else max(1, machine.cores() // threads)
