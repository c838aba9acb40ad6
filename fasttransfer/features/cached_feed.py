"""Batches with the cuts that the cache holds: read ahead of need, with images only where something needs them.

A cohort whose cells are all frozen and whose cuts are all cached never reads an image: that is the time that the cache
saves. Damage that shows while reading costs the entry, not the cohort: from that very batch on its images are made
again and the cut runs live, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import Log, format_bytes
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.features import cut_timing
from fasttransfer.features.cache_entry import CacheEntry, quarantine
from fasttransfer.features.feature_source import FeatureSource, Part
from fasttransfer.networks.architecture import cut_name
from fasttransfer.ops import PackedFeatures, unpack_features
from fasttransfer.pipelines.choose_feed import HOST_SHARE
from fasttransfer.pipelines.streams import Batch, Feed, Stream, Views, centre_views
from fasttransfer.study.cells import Cell, frozen_by_source

Reads = Mapping[str, Callable[[], Tensor]]  # name of a cut -> waits for it to be read


def open_cached_feed(
    sources: Mapping[str, FeatureSource],
    cells: Sequence[Cell],
    stream: Stream,
    open_images: Callable[[frozenset[str]], Feed],
    mode: Literal["auto", "cache"],
    *,
    log: Log,
    progress: Log,
    stop: Callable[[], bool],
) -> CachedFeed:
    """Open the feed of a cohort in a study with views: cuts that the cache holds, perhaps after filling, come from it.

    All others run live, to the same bits. Where the cache cannot be written, that is logged and the cells go on live.

    Args:
        sources: `Cell.source` -> the network that the frozen ones among `cells` copy, all over the same images.
        cells: of one target and seed.
        stream: the training images in the order of training.
        open_images: opens the feed of images under these means.
        mode: "cache" keeps every cut, "auto" those that are read faster than they are computed.
        log: told what comes from the cache; progress: told how far filling is; stop: ends it by returning True.
    """
    means_of: dict[str, str] = {}
    entries: dict[Part, dict[str, CacheEntry]] = {"train": {}, "val": {}}
    for name, group in sorted(frozen_by_source(cells).items()):
        source = sources[name]
        by_part: dict[Part, FeatureSource] = {"train": source, "val": source.with_first_view()}
        cuts = cut_timing.cuts_read(source.study.recipe.network, (cell.n for cell in group))
        means_of |= {cut_name(name, cut): source.means_of for cut in cuts}
        if mode == "auto":
            kept = set(cuts).intersection(*(each.find(part, cuts, log=log) for part, each in by_part.items()))
            if missing := set(cuts) - kept:
                kept |= cut_timing.cuts_worth_keeping(source, missing, log)
            cuts = tuple(sorted(kept))
        for part, each in by_part.items():
            by_cut = each.find_or_fill(part, cuts, log=log, progress=progress, stop=stop)
            entries[part] |= {cut_name(name, cut): entry for cut, entry in by_cut.items()}
    means = frozenset(source.study.means_of(cell) for cell in cells if not cell.frozen)
    feed = CachedFeed(means_of, means, entries, source, stream, open_images, log)
    cached = ", ".join(name for name in means_of if name in entries["train"])
    live = ", ".join(name for name in means_of if name not in entries["train"])
    parts = [f"{cached} {feed.place}"] * bool(cached) + [f"{live} live"] * bool(live)
    log(f"features of task {source.task}'s frozen cells: {'; '.join(parts)}")
    return feed


def _describe_place(size: int) -> str:
    """Return in words where `size` bytes of stored features are read from."""
    free = machine.free_memory()
    if free is None or size <= HOST_SHARE * free:
        return f"from the page cache ({format_bytes(size)})"
    return f"from disk ({format_bytes(size)}, {format_bytes(free)} of memory free)"


class _OpenEntry:
    """An entry of the cache with its reader; for a GPU, one thread reads into pinned memory."""

    def __init__(self, entry: CacheEntry, device: torch.device, threads: int) -> None:
        self.entry, self._device = entry, device
        self._reader = entry.open(threads)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="features") if device.type == "cuda" else None
        entry.count_use()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def start(self, records: Tensor) -> Callable[[], Tensor]:
        """Start to read records, (N,) int64; the function that it returns waits for them, on the device.

        That function raises CorruptFileError where they are not what was written.
        """
        if self._pool is None:
            return self._reader.start(records)
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


class CachedFeed:
    """Batches of a task, see `fasttransfer.pipelines.streams.Feed`, with the cuts of `entries` instead of images.

    Args:
        means_of: name of each cut that a frozen cell starts from -> name of the means of its source, see
            `Study.means_of`. Cuts that no entry holds are left to the cohort, with their images.
        means: names of the means of the other cells.
        entries: part -> name of a cut -> its entry over the images of that part, the training images in the views of
            `stream`, the validation images in view 0, perhaps followed by more views.
        source: has the images, the device where batches are made, and the threads that read, per entry.
        stream: the training images in the order of training.
        open_images: opens a feed of the same images under these means.
        log: told which entries proved damaged.

    Attributes:
        place: where the features lie, in words.
    """

    def __init__(
        self,
        means_of: Mapping[str, str],
        means: frozenset[str],
        entries: Mapping[Part, Mapping[str, CacheEntry]],
        source: FeatureSource,
        stream: Stream,
        open_images: Callable[[frozenset[str]], Feed],
        log: Log,
    ) -> None:
        self._means_of, self._other_means, self._images_of, self._stream = means_of, means, source.images, stream
        self._open_images, self._device, self._log = open_images, source.device, log
        self._images: tuple[frozenset[str], Feed] | None = None
        self._ahead: tuple[int, Views, Reads] | None = None  # the next step, its views, and its cuts being read
        self.place = _describe_place(sum(entry.bytes for part in entries.values() for entry in part.values()))
        self._cuts: dict[Part, dict[str, _OpenEntry]] = {"train": {}, "val": {}}
        for part, named in entries.items():
            for name, entry in named.items():
                try:
                    self._cuts[part][name] = _OpenEntry(entry, source.device, source.study.threads)
                except (CorruptFileError, InputError) as error:
                    self._drop(part, name, entry, error)

    def train(self, step: int) -> Batch:
        """Return the batch of training step `step`, counted from 0."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = self._start_batch(step)
        _, views, reads = self._ahead
        cuts = self._wait("train", reads)
        self._ahead = self._start_batch(step + 1)
        if means := self._means("train"):
            return self._image_feed(means).train(step)._replace(cuts=cuts)
        return self._without_images("train", views, cuts)

    def val(self) -> Iterator[Batch]:
        """Yield every validation image once, in order, centre crops."""
        batches: Iterator[Batch] = iter(())
        at, under = 0, frozenset[str]()
        chunks = torch.arange(len(self._images_of["val"])).split(self._stream.batch)
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
                yield self._without_images("val", centre_views(ids, self._stream.margin), cuts)

    def close(self) -> None:
        """Give back threads and memory; the feed is not used again."""
        for cuts in self._cuts.values():
            for cut in cuts.values():
                cut.close()
        self._cuts, self._ahead = {"train": {}, "val": {}}, None
        if self._images is not None:
            self._images[1].close()

    def _start_batch(self, step: int) -> tuple[int, Views, Reads]:
        views = self._stream.views(step)
        return (step, views, self._start_reads("train", views.ids, views.number))

    def _start_reads(self, part: Part, ids: Tensor, view: Tensor | int = 0) -> Reads:
        return {name: cut.start(ids * cut.entry.views + view) for name, cut in self._cuts[part].items()}

    def _wait(self, part: Part, reads: Reads) -> dict[str, Tensor]:
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
            quarantine(entry.folder, error, self._log, entry.checksum)
        self._log(f"{name} runs live from here on, for its features cannot be read ({error})")
        if cut := self._cuts[part].pop(name, None):
            cut.close()

    def _means(self, part: Part) -> frozenset[str]:
        """Return the means under which a batch of this part must have images."""
        live = self._means_of.keys() - self._cuts[part].keys()
        return self._other_means | {self._means_of[name] for name in live}

    def _image_feed(self, means: frozenset[str]) -> Feed:
        if self._images is None or not means <= self._images[0]:
            if self._images is not None:
                means |= self._images[0]
                self._images[1].close()
            self._images = means, self._open_images(means)
        return self._images[1]

    def _without_images(self, part: Part, views: Views, cuts: Mapping[str, Tensor]) -> Batch:
        labels = torch.from_numpy(self._images_of[part].labels[views.ids.numpy()])
        if self._device.type == "cuda":
            labels = labels.pin_memory().to(self._device, non_blocking=True)
        return Batch({}, labels, views.ids, views.number, cuts)
