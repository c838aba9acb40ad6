"""Copy pixels onto a GPU while it computes: pinned buffers, filled in turn and copied on a stream of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import torch
from torch import Tensor


class Staging:
    """Two pinned buffers and their twins on a GPU.

    One is filled while the other is copied or read. No buffer is written before its last reader is done: the CPU waits
    for the copy out of a pinned buffer, the copying stream for the kernels that read its twin. That also bounds how far
    the CPU runs ahead of the GPU.

    Args:
        shape: shape of a uint8 buffer; the first dimension is the largest number of rows.
        device: the GPU.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._slots = cycle([_Slot(shape, device) for _ in range(2)])
        # The twins may lie in memory that earlier kernels still use.
        self._stream.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def copy(self, rows: int, fill: Callable[[Tensor], None]) -> Iterator[Tensor]:
        """Yield (rows, ...) on the GPU, which `fill` writes when pinned, for the current stream within the context."""
        slot = next(self._slots)
        slot.copied.synchronize()
        fill(slot.pinned[:rows])
        copy = slot.twin[:rows]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.read)
            copy.copy_(slot.pinned[:rows], non_blocking=True)
            slot.copied.record(self._stream)
        reader = torch.cuda.current_stream(self._device)
        reader.wait_event(slot.copied)
        try:
            yield copy
        finally:
            slot.read.record(reader)

    def close(self) -> None:
        """Wait for the copies under way, after which the buffers may be reused."""
        self._stream.synchronize()


class _Slot:
    """A pinned buffer, its twin, and the events of their last reads: `copied` out of the one, `read` from the other."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.twin = torch.empty(shape, dtype=torch.uint8, device=device)
        # Waiting for an event that was never recorded returns at once.
        self.copied, self.read = torch.cuda.Event(), torch.cuda.Event()
