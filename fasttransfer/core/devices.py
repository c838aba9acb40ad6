"""The choice of device, threads and workers, and the settings of a process that trains."""

from __future__ import annotations

import ctypes
import sys

import torch

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError

# Options of glibc's mallopt, and values: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD.
_KEEP = ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 64 << 20))


def choose_device(choice: str | None) -> str:
    """Return "cuda" or "cpu": the user's choice, else a GPU where there is one.

    Raises:
        InputError: the device is unknown, or there is no GPU.
    """
    if choice not in (None, "cpu", "cuda"):
        raise InputError(f"--device {choice}: choose cpu or cuda")
    if choice == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: PyTorch sees no CUDA device here: choose --device cpu, or see fasttransfer info"
        )
    return choice or ("cuda" if torch.cuda.is_available() else "cpu")


def configure_process(device: str, threads: int, index: int) -> torch.device:
    """Configure this process, the `index`-th of its kind on this machine, for a study; return its device.

    Every process that trains, measures or computes features calls this, because bits depend on these settings.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = True
    if device == "cuda":
        gpu = torch.device("cuda", index % torch.cuda.device_count())
        torch.cuda.set_device(gpu)  # streams and graphs belong to the current device
        return gpu
    keep_freed_memory()
    return torch.device("cpu")


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for the next ones; without effect on other systems.

    By default glibc maps every tensor of more than 32 MiB afresh, at a page fault per 4 KiB (docs/decisions/memory.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in _KEEP:
            mallopt(option, value)


def choose_threads(device: str) -> int:
    """Return the number of CPU threads per network.

    Networks train beside each other, so one thread each wastes least; above eight cores, networks get more threads
    rather than more processes, whose memory adds up.
    """
    return 1 if device == "cuda" else max(1, machine.cores() // 8)


def count_workers(device: str, threads: int) -> int:
    """Return the number of processes that train at the same time: one per GPU, or as many as the cores allow."""
    return torch.cuda.device_count() if device == "cuda" else max(1, machine.cores() // threads)
