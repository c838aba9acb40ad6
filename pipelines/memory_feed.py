"""The feed of raw stores: pixels are read where they lie, and augmented in one pass per mean image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fasttransfer.core import machine
from fasttransfer.pipelines.store import RawStorePart, StorePart
from fasttransfer.pipelines.store_feed import Augmentation, ShardPixels, StoreFeed
from fasttransfer.pipelines.streams import Stream, TaskImages

_CHUNK = 64 << 20  # bytes gathered at a time on their way into a GPU's memory
_GATHERERS = 4  # threads at most that copy a batch: one core does not fill a GPU's link


class MemoryFeed(StoreFeed):
    """Batches straight from a raw store.

    On the CPU the shards are read where they are mapped: pages that were read before are in the page cache. For a GPU
    the task's images either lie in its memory, or each batch is gathered into pinned memory and copied while the GPU
    computes.

    Args:
        resident: whether a GPU's memory holds all images of the task.

    The other arguments are those of `StoreFeed`.
    """

    def __init__(
        self,
        train: TaskImages,
        val: TaskImages,
        stream: Stream,
        means: Mapping[str, Tensor],
        *,
        device: torch.device,
        resident: bool = False,
        **look: Unpack[Augmentation],
    ) -> None:
        super().__init__(train, val, stream, means, device=device, **look)
        self._shards: dict[StorePart, list[Tensor]] = {}
        self._resident: dict[TaskImages, Tensor] = {}
        self._staging: _Staging | None = None
        if device.type == "cpu":
            self._shards = {images.part: _map_shards(images.part) for images in (train, val)}
        elif resident:
            self._resident = {images: _load(images, device) for images in (train, val)}
        else:
            side = train.part.size
            self._staging = _Staging((stream.batch, side, side, 3), device)
            self._threads = min(_GATHERERS, machine.cores())
            self._gatherers = ThreadPoolExecutor(self._threads, thread_name_prefix="gather")

    def close(self) -> None:
        if self._staging is not None:
            self._gatherers.shutdown()
            self._staging.close()
        self._resident = {}

    @contextmanager
    def _pixels(self, images: TaskImages, ids: Tensor) -> Iterator[ShardPixels]:
        if self._staging is not None:
            fill = partial(self._gather, images.part, images.rows[ids.numpy()])
            with self._staging.copy(len(ids), fill) as copy:
                yield [copy], torch.arange(len(ids))
        elif self._resident:
            yield [self._resident[images]], ids
        else:
            yield self._shards[images.part], torch.from_numpy(images.rows[ids.numpy()])

    def _gather(self, part: StorePart, rows: np.ndarray, out: Tensor) -> None:
        """Copy the pixels of `rows` into `out`, (N, S, S, 3) uint8; each thread copies a range of them."""
        pixels = out.numpy()
        cuts = np.linspace(0, len(rows), self._threads + 1).astype(np.int64)

        def work(start: int, stop: int) -> None:
            pixels[start:stop] = part.gather(rows[start:stop])

        for _ in self._gatherers.map(work, cuts[:-1], cuts[1:]):
            pass


def _map_shards(part: StorePart) -> list[Tensor]:
    """Return the shards of a part as tensors over the same read-only memory."""
    assert isinstance(part, RawStorePart), "a jpeg store holds no pixels"
    # Not from_numpy, which warns that the memory is read-only.
    return [from_dlpack(shard) for shard in part.shards]


def _load(images: TaskImages, device: torch.device) -> Tensor:
    """Return all images in the order of the task's list, (n, S, S, 3) uint8 in a GPU's memory."""
    side = images.part.size
    pixels = torch.empty((len(images), side, side, 3), dtype=torch.uint8, device=device)
    step = max(1, _CHUNK // (side * side * 3))
    for start in range(0, len(images), step):
        pixels[start : start + step] = torch.from_numpy(images.part.gather(images.rows[start : start + step]))
    return pixels


class _Staging:
    """Two pinned buffers and their twins on a GPU, to which pixels are copied on a stream of their own.

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
