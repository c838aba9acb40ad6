"""Batches with the cuts that the cache holds: read ahead of need, with images only where something needs them.

A cohort whose cells are all frozen and whose cuts are all cached never reads an image: that is the time that the cache
saves. Damage that shows while reading costs the entry, not the cohort: from that very batch on its images are made
again and the cut runs live, to the same bits.
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
from fasttransfer.features.cache_entry import CacheEntry, quarantine
from fasttransfer.features.feature_source import Part
from fasttransfer.ops import PackedFeatures, unpack_features
from fasttransfer.pipelines.choose_feed import DEVICE_SHARE, HOST_SHARE
from fasttransfer.pipelines.streams import Batch, Feed, Stream, TaskImages, Views, centre_views

Place = Literal["device", "memory", "disk"]

_CHUNK = 1024  # records copied to a GPU at a time, to stay there


def choose_place(size: int, device: str, free: int | None, free_host: int | None) -> tuple[Place, str]:
    """Return where the features of a cohort lie while it trains, and a description for people; measures nothing.

    Args:
        size: bytes of all of them, as they are stored.
        device: "cpu" or "cuda".
        free: bytes of the device's memory that are free; None on a CPU.
        free_host: bytes of the machine's memory that are free; None where the system does not tell.
    """
    # While they are gathered there, they are there twice.
    if device == "cuda" and free is not None and 2 * size <= DEVICE_SHARE * free:
        return "device", f"held in the GPU's memory ({format_bytes(size)}, {format_bytes(free)} free)"
    if free_host is None or size <= HOST_SHARE * free_host:
        return "memory", f"from the page cache ({format_bytes(size)})"
    return "disk", f"from disk ({format_bytes(size)}, {format_bytes(free_host)} of memory free)"


class _OpenEntry:
    """An entry of the cache with its reader."""

    def __init__(self, entry: CacheEntry, device: torch.device, place: Place, threads: int) -> None:
        self.entry, self._device = entry, device
        self._reader = entry.open(threads)
        self._resident: PackedFeatures | Tensor | None = None  # all records, on the device
        self._pool: ThreadPoolExecutor | None = None
        entry.count_use()
        if device.type == "cuda":
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="features")
            if place == "device":
                self._resident = self._load_all()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._reader.close()
        self._resident = None

    def start(self, records: Tensor) -> Callable[[], Tensor]:
        """Start to read records, (N,) int64; the function that it returns waits for them, on the device.

        That function raises CorruptFileError where they are not what was written.
        """
        if self._resident is not None:
            resident, rows = self._resident, records.to(self._device)
            if isinstance(resident, Tensor):
                return lambda: resident.index_select(0, rows)
            return lambda: unpack_features(resident, self.entry.shape, rows)
        if self._pool is None:
            return self._reader.start(records).wait
        pinned = self._pool.submit(self._read_pinned, records)
        return lambda: self._to_device(pinned.result())

    def _read_pinned(self, records: Tensor) -> PackedFeatures | Tensor:
        """Read records into memory from which a GPU copies without waiting."""
        if self._reader.packed:
            return self._reader.read_packed(records, pinned=True)
        return self._reader.read(records).pin_memory()

    def _to_device(self, features: PackedFeatures | Tensor) -> Tensor:
        if isinstance(features, Tensor):
            return features.to(self._device, non_blocking=True)
        packed = PackedFeatures(*(part.to(self._device, non_blocking=True) for part in features))
        return unpack_features(packed, self.entry.shape)

    def _load_all(self) -> PackedFeatures | Tensor:
        """Copy all records to the device."""
        masks, values, offsets, before = [], [], [torch.zeros(1, dtype=torch.int64)], 0
        for rows in torch.arange(len(self._reader)).split(_CHUNK):
            features = self._read_pinned(rows)
            if isinstance(features, Tensor):
                values.append(features.to(self._device))
                continue
            masks.append(features.mask.to(self._device))
            values.append(features.values.to(self._device))
            offsets.append(features.offsets[1:] + before)
            before += len(features.values)
        if not self._reader.packed:
            return torch.cat(values)
        return PackedFeatures(torch.cat(masks), torch.cat(values), torch.cat(offsets).to(self._device))


class _PendingBatch(NamedTuple):
    """A batch whose cuts are being read."""

    step: int
    views: Views
    reads: Mapping[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class CutsNeeded:
    """The cuts and images that the cells of a cohort read.

    Attributes:
        cuts: name of each cut that a frozen cell starts from -> task of the mean image of its source.
        means: tasks of the mean images of the other cells.
    """

    cuts: Mapping[str, str]
    means: frozenset[str]


class CachedFeed:
    """Batches of a task, see `fasttransfer.pipelines.streams.Feed`, with the cuts of `entries` instead of images.

    Args:
        needs: the cuts and images that the cells read; cuts that no entry holds are left to the cohort, with their
            images.
        entries: part -> name of a cut -> its entry over the images of that part, the training images in the views of
            `stream`, the validation images in view 0, perhaps followed by more views.
        train, val, stream: those of a feed of images.
        open_images: opens a feed of the same images under these means.
        device: where batches are made.
        threads: that read, per entry.
        log: told which entries proved damaged.

    Attributes:
        place: where the features lie, in words.
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
        self._open_images, self._device, self._log = open_images, device, log
        self._images: tuple[frozenset[str], Feed] | None = None
        self._ahead: _PendingBatch | None = None
        size = sum(entry.bytes for part in entries.values() for entry in part.values())
        place, self.place = choose_place(size, device.type, _free_memory(device), machine.free_memory())
        self._cuts: dict[Part, dict[str, _OpenEntry]] = {"train": {}, "val": {}}
        for part, named in entries.items():
            for name, entry in named.items():
                try:
                    self._cuts[part][name] = _OpenEntry(entry, device, place, threads)
                except (CorruptFileError, InputError) as error:
                    self._drop(part, name, entry, error)

    def train(self, step: int) -> Batch:
        """Return the batch of training step `step`, counted from 0."""
        batch = self._ahead if self._ahead is not None and self._ahead.step == step else self._start_batch(step)
        cuts = self._wait("train", batch.reads)
        self._ahead = self._start_batch(step + 1)
        if means := self._means("train"):
            return self._image_feed(means).train(step)._replace(cuts=cuts)
        return self._without_images(self._train, batch.views, cuts)

    def val(self) -> Iterator[Batch]:
        """Yield every validation image once, in order, centre crops."""
        batches: Iterator[Batch] = iter(())
        at, under = 0, frozenset[str]()
        chunks = torch.arange(len(self._val)).split(self._stream.batch)
        following = self._start_reads("val", chunks[0])
        for i, ids in enumerate(chunks):
            cuts = self._wait("val", following)
            following = self._start_reads("val", chunks[i + 1]) if i + 1 < len(chunks) else {}
            if means := self._means("val"):
                if not means <= under:  # at first, or because an entry was dropped
                    batches, at, under = self._image_feed(means).val(), 0, means
                while at <= i:
                    batch, at = next(batches), at + 1
                yield batch._replace(cuts=cuts)
            else:
                yield self._without_images(self._val, centre_views(ids, self._stream.margin), cuts)

    def close(self) -> None:
        """Give back threads and memory; the feed is not used again."""
        for cuts in self._cuts.values():
            for cut in cuts.values():
                cut.close()
        self._cuts, self._ahead = {"train": {}, "val": {}}, None
        if self._images is not None:
            self._images[1].close()

    def _start_batch(self, step: int) -> _PendingBatch:
        views = self._stream.views(step)
        return _PendingBatch(step, views, self._start_reads("train", views.ids, views.number))

    def _start_reads(self, part: Part, ids: Tensor, view: Tensor | int = 0) -> dict[str, Callable[[], Tensor]]:
        return {name: cut.start(ids * cut.entry.views + view) for name, cut in self._cuts[part].items()}

    def _wait(self, part: Part, reads: Mapping[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        cuts = {}
        for name, read in reads.items():
            cut = self._cuts[part].get(name)
            if cut is None:  # dropped since the read was started
                continue
            try:
                cuts[name] = read()
            except CorruptFileError as error:
                self._drop(part, name, cut.entry, error)
        return cuts

    def _drop(self, part: Part, name: str, entry: CacheEntry, error: CorruptFileError | InputError) -> None:
        """Go on without an entry."""
        if isinstance(error, CorruptFileError):
            quarantine(entry, error, self._log)
        self._log(f"{name} runs live from here on, for its features cannot be read ({error})")
        if cut := self._cuts[part].pop(name, None):
            cut.close()

    def _means(self, part: Part) -> frozenset[str]:
        """Return the means under which a batch of this part must have images."""
        live = self._needs.cuts.keys() - self._cuts[part].keys()
        return self._needs.means | {self._needs.cuts[name] for name in live}

    def _image_feed(self, means: frozenset[str]) -> Feed:
        if self._images is None or not means <= self._images[0]:
            if self._images is not None:
                means |= self._images[0]
                self._images[1].close()
            self._images = means, self._open_images(means)
        return self._images[1]

    def _without_images(self, images: TaskImages, views: Views, cuts: Mapping[str, Tensor]) -> Batch:
        labels = torch.from_numpy(images.labels[views.ids.numpy()])
        if self._device.type == "cuda":
            labels = labels.pin_memory().to(self._device, non_blocking=True)
        return Batch({}, labels, views.ids, views.number, cuts)


def _free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a GPU's memory; None on a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()  # what was trained before goes first, its memory back to the GPU
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
