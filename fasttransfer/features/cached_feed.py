"""Batches with the cuts that the cache holds: read ahead of need, and images only where something needs them.

A cohort whose cells are all frozen and whose cuts are all kept never sees an image: that is where the time goes that
the cache saves. Damage that is found while reading costs the entry, not the cohort: from that very batch on its
images are made again and the cut runs live, to the same bits.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import Log, format_bytes
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.features import cache
from fasttransfer.features.cache_entry import CacheEntry
from fasttransfer.features.feature_source import Part
from fasttransfer.features.shards import ShardReader
from fasttransfer.ops import PackedFeatures, unpack_features
from fasttransfer.pipelines.choose_feed import DEVICE_SHARE, HOST_SHARE
from fasttransfer.pipelines.streams import Batch, Feed, Stream, TaskImages, Views, centre_views

Place = Literal["device", "memory", "disk"]

_CHUNK = 1024  # records that go to a GPU at a time, to stay there


def choose_place(held: int, device: str, free: int | None, free_host: int | None) -> tuple[Place, str]:
    """Where the features of a cohort lie while it trains, and how to say so; measures nothing.

    Args:
        held: bytes of all of them, as they are stored.
        device: "cpu" or "cuda".
        free: bytes of the device's memory that are free; None on a CPU.
        free_host: bytes of the machine's; None where nobody knows.
    """
    # Gathered there, for a moment they are there twice.
    if device == "cuda" and free is not None and 2 * held <= DEVICE_SHARE * free:
        return "device", f"held in the GPU's memory ({format_bytes(held)}, {format_bytes(free)} free)"
    if free_host is None or held <= HOST_SHARE * free_host:
        return "memory", f"from the page cache ({format_bytes(held)})"
    return "disk", f"from disk ({format_bytes(held)}, {format_bytes(free_host)} of memory free)"


class _Cut:
    """One entry, open."""

    def __init__(self, entry: CacheEntry, device: torch.device, place: Place, threads: int) -> None:
        self.entry, self._device = entry, device
        self._reader: ShardReader | None = entry.open(threads)
        self._held: PackedFeatures | Tensor | None = None
        self._pool: ThreadPoolExecutor | None = None
        cache.count_use(entry)
        if device.type == "cuda":
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="features")
            if place == "device":
                self._held = self._hold()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._reader is not None:
            self._reader.close()
        self._reader = self._held = None

    def start(self, records: Tensor) -> Callable[[], Tensor]:
        """Begins to read records, (N,) int64; what it returns waits for them, on the device.

        The latter raises CorruptFileError where they are not what was written.
        """
        assert self._reader is not None
        if self._held is not None:
            return lambda: self._taken(self._held, records.to(self._device))
        if self._pool is None:
            return self._reader.start(records).wait
        packed = self._pool.submit(self._pinned, records)
        return lambda: self._unpacked(packed.result())

    def _pinned(self, records: Tensor) -> PackedFeatures | Tensor:
        """Records in memory from which a GPU copies without waiting."""
        assert self._reader is not None
        if self._reader.packed:
            return self._reader.read_packed(records, pinned=True)
        return self._reader.read(records).pin_memory()

    def _unpacked(self, found: PackedFeatures | Tensor) -> Tensor:
        if isinstance(found, Tensor):
            return found.to(self._device, non_blocking=True)
        there = PackedFeatures(*(part.to(self._device, non_blocking=True) for part in found))
        return unpack_features(there, self.entry.shape)

    def _taken(self, held: PackedFeatures | Tensor | None, records: Tensor) -> Tensor:
        if isinstance(held, PackedFeatures):
            return unpack_features(held, self.entry.shape, records)
        assert held is not None
        return held.index_select(0, records)

    def _hold(self) -> PackedFeatures | Tensor:
        """All records on the device."""
        assert self._reader is not None
        count = len(self._reader)
        chunks = [torch.arange(at, min(at + _CHUNK, count)) for at in range(0, count, _CHUNK)]
        if not self._reader.packed:
            parts = [self._pinned(chunk) for chunk in chunks]
            return torch.cat([part.to(self._device) for part in parts if isinstance(part, Tensor)])
        masks, values, offsets, before = [], [], [torch.zeros(1, dtype=torch.int64)], 0
        for chunk in chunks:
            found = self._reader.read_packed(chunk, pinned=True)
            masks.append(found.mask.to(self._device))
            values.append(found.values.to(self._device))
            offsets.append(found.offsets[1:] + before)
            before += len(found.values)
        return PackedFeatures(torch.cat(masks), torch.cat(values), torch.cat(offsets).to(self._device))


class _PendingBatch(NamedTuple):
    """A batch whose cuts are being read."""

    step: int
    views: Views
    reads: Mapping[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class CutsNeeded:
    """What the cells of a cohort read.

    Attributes:
        cuts: name of each cut that a frozen cell starts from -> the mean image of its source.
        means: of the images that other cells are trained from.
    """

    cuts: Mapping[str, str]
    means: frozenset[str]


class CachedFeed:
    """Batches of a task, see `fasttransfer.pipelines.streams.Feed`, with the cuts of `entries` instead of images.

    Args:
        needs: what the cells read; what of it no entry holds is left to who computes, with the images for it.
        entries: part -> name of a cut -> its entry, over the images of that part: the training images in the views
            of `stream`, the validation images in view 0.
        train, val, stream: as those of a feed of images.
        open_images: a feed of the same images under these means.
        device: where batches are made.
        threads: that read, for each entry.
        say: told which entries proved damaged.
    """

    def __init__(
        self,
        needs: CutsNeeded,
        entries: Mapping[Part, Mapping[str, CacheEntry]],
        train: TaskImages,
        val: TaskImages,
        stream: Stream,
        open_images: Callable[[frozenset[str]], Feed],
        *,
        device: torch.device,
        threads: int,
        log: Log,
    ) -> None:
        self._needs, self._train, self._val, self._stream = needs, train, val, stream
        self._open, self._device, self._say = open_images, device, log
        self._images: tuple[frozenset[str], Feed] | None = None
        self._ahead: _PendingBatch | None = None
        held = sum(entry.bytes for part in entries.values() for entry in part.values())
        place, self.place = choose_place(held, device.type, _free(device), machine.free_memory())
        self._cuts: dict[Part, dict[str, _Cut]] = {"train": {}, "val": {}}
        for part, named in entries.items():
            for name, entry in named.items():
                try:
                    self._cuts[part][name] = _Cut(entry, device, place, threads)
                except (CorruptFileError, InputError) as error:
                    self._lost(part, name, entry, error)

    def train(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0."""
        asked = self._ahead if self._ahead is not None and self._ahead.step == step else self._begin(step)
        cuts = self._wait("train", asked.reads)
        self._ahead = self._begin(step + 1)
        means = self._means("train")
        if means:
            return self._images_under(means).train(step)._replace(cuts=cuts)
        return self._batch(self._train, asked.views, cuts)

    def val(self) -> Iterator[Batch]:
        """Every validation image once, in order, centre crops."""
        batches: Iterator[Batch] = iter(())
        at, under = 0, frozenset[str]()
        chunks = torch.arange(len(self._val)).split(self._stream.batch)
        following = self._start("val", chunks[0])
        for i, ids in enumerate(chunks):
            cuts = self._wait("val", following)
            following = self._start("val", chunks[i + 1]) if i + 1 < len(chunks) else {}
            if means := self._means("val"):
                if not means <= under:  # at first, or because something was lost
                    batches, at, under = self._images_under(means).val(), 0, means
                while at <= i:
                    batch, at = next(batches), at + 1
                yield batch._replace(cuts=cuts)
            else:
                yield self._batch(self._val, centre_views(ids, self._stream.margin), cuts)

    def close(self) -> None:
        """Gives back threads and memory; the feed is not asked again."""
        for cuts in self._cuts.values():
            for cut in cuts.values():
                cut.close()
        self._cuts, self._ahead = {"train": {}, "val": {}}, None
        if self._images is not None:
            self._images[1].close()

    def _begin(self, step: int) -> _PendingBatch:
        views = self._stream.views(step)
        return _PendingBatch(step, views, self._start("train", views.ids, views.number))

    def _start(self, part: Part, ids: Tensor, number: Tensor | int = 0) -> dict[str, Callable[[], Tensor]]:
        return {name: cut.start(ids * cut.entry.views + number) for name, cut in self._cuts[part].items()}

    def _wait(self, part: Part, reads: Mapping[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        found = {}
        for name, read in reads.items():
            cut = self._cuts[part].get(name)
            if cut is None:  # lost since it was asked
                continue
            try:
                found[name] = read()
            except CorruptFileError as error:
                self._lost(part, name, cut.entry, error)
        return found

    def _lost(self, part: Part, name: str, entry: CacheEntry, error: CorruptFileError | InputError) -> None:
        """Goes on without an entry."""
        if isinstance(error, CorruptFileError):
            cache.quarantine(entry, error, self._say)
        self._say(f"{name} runs live from here on, for its features cannot be read ({error})")
        if cut := self._cuts[part].pop(name, None):
            cut.close()

    def _means(self, part: Part) -> frozenset[str]:
        """Of the images that a batch of this part must have."""
        live = self._needs.cuts.keys() - self._cuts[part].keys()
        return self._needs.means | {self._needs.cuts[name] for name in live}

    def _images_under(self, means: frozenset[str]) -> Feed:
        if self._images is None or not means <= self._images[0]:
            if self._images is not None:
                means |= self._images[0]
                self._images[1].close()
            self._images = means, self._open(means)
        return self._images[1]

    def _batch(self, images: TaskImages, views: Views, cuts: Mapping[str, Tensor]) -> Batch:
        labels = torch.from_numpy(images.labels[views.ids.numpy()])
        if self._device.type == "cuda":
            labels = labels.pin_memory().to(self._device, non_blocking=True)
        return Batch({}, labels, views.ids, views.number, cuts)


def _free(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    gc.collect()  # what was trained before goes first, its memory back to the GPU
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
