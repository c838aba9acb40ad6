"""Pixels onto a GPU while it computes: pinned buffers filled in turn, copied on a stream of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import torch
from torch import Tensor


class Staging:
    """Two pinned buffers and their twins on a GPU.

    Two, so that one is filled while the other is copied or read. No buffer is written before its last reader is done:
    the CPU waits for the copy out of a pinned one, the copying stream for the kernels that read its twin. That also
    bounds how far the CPU runs ahead of the GPU.

    Args:
        shape: of a buffer, uint8; the first dimension is the most rows that are asked for.
        device: the GPU.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._slots = cycle([_Slot(shape, device) for _ in range(2)])
        # The twins may lie in memory that kernels before still use.
        self._stream.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def copied(self, rows: int, fill: Callable[[Tensor], None]) -> Iterator[Tensor]:
        """What `fill` writes into the pinned (rows, ...), on the GPU: for the current stream, inside the context."""
        slot = next(self._slots)
        slot.copied.synchronize()
        fill(slot.pinned[:rows])
        there = slot.twin[:rows]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.read)
            there.copy_(slot.pinned[:rows], non_blocking=True)
            slot.copied.record(self._stream)
        reader = torch.cuda.current_stream(self._device)
        reader.wait_event(slot.copied)
        try:
            yield there
        finally:
            slot.read.record(reader)

    def close(self) -> None:
        """Waits for the copies under way: the buffers may be given to others."""
        self._stream.synchronize()


class _Slot:
    """A pinned buffer, its twin, and when each was last read: `copied` of the pinned one, `read` of the twin."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.twin = torch.empty(shape, dtype=torch.uint8, device=device)
        # An event that was never recorded holds nobody up.
        self.copied, self.read = torch.cuda.Event(), torch.cuda.Event()
