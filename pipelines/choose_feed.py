"""Which feed a store gets on this machine, where its images lie meanwhile, and whether batches are made ahead.

Which images and views a batch has does not depend on it: a study begun with one choice may go on with another. Only
the kind of store that a source becomes can be seen, by the loss of JPEG, and is kept; on a GPU also the last bits of
what its decoder makes of a JPEG.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import format_bytes as size_of
from fasttransfer.pipelines.dali_feed import DaliFeed, require_dali
from fasttransfer.pipelines.memory_feed import MemoryFeed
from fasttransfer.pipelines.prefetched_feed import PrefetchedFeed
from fasttransfer.pipelines.store import JpegStorePart, Kind, Store, expected_bytes
from fasttransfer.pipelines.store_feed import Augmentation
from fasttransfer.pipelines.streams import Feed, Stream, TaskImages

Name = Literal["memory", "dali"]

FEED_OF: dict[Kind, Name] = {"raw": "memory", "jpeg": "dali"}
KIND_OF: dict[Name, Kind] = {"memory": "raw", "dali": "jpeg"}

DEVICE_SHARE = 0.75
"""Share of a GPU's free memory that images may take: the networks of a cohort train in the rest."""
HOST_SHARE = 0.5
"""Share of the free memory up to which files, once read, are taken to stay in the page cache."""
DISK_SHARE = 0.9
"""Share of the free disk that a raw store may take."""

_DALI_THREADS = 8  # at most, beside a GPU: they only prepare what it decodes


@dataclass(frozen=True)
class FeedChoice:
    """A feed, where the images lie that it reads, whether a thread makes batches ahead; `about` says so in words."""

    feed: Name
    resident: bool
    ahead: bool
    about: str


def choose_feed(kind: Kind, images: int, device: str, free: int | None) -> FeedChoice:
    """Decides from what is known; changes nothing and measures nothing.

    Args:
        kind: of the store.
        images: bytes of a task's images as they are stored.
        device: "cpu" or "cuda".
        free: bytes of memory that are free where images would be kept, on the GPU for a raw store, else in the
            machine; None where nobody knows.
    """
    share = DEVICE_SHARE if kind == "raw" and device == "cuda" else HOST_SHARE
    fits = free is None or images <= share * free
    room = "" if free is None else f" ({size_of(images)}, {size_of(free)} free)"
    if kind == "jpeg":
        by = "on the GPU" if device == "cuda" else "on the CPU"
        files = "from the page cache" if fits else f"from disk, read one batch ahead{room}"
        return FeedChoice("dali", False, not fits, f"dali, decoded {by} {files}")
    if device == "cuda" and free is not None and fits:
        return FeedChoice("memory", True, False, f"memory, held in the GPU's memory{room}")
    if device == "cuda":
        return FeedChoice("memory", False, True, f"memory, through pinned buffers, one batch ahead{room}")
    if fits:
        return FeedChoice("memory", False, False, "memory, mapped, from the page cache")
    return FeedChoice("memory", False, True, f"memory, mapped, from disk, read one batch ahead{room}")


def choose_kind(images: int, size: int, free: int, have: Collection[Kind], *, dali: bool) -> tuple[Kind, str]:
    """Which kind of store to prepare, and why: raw where the disk has room, for it costs no decoding later.

    Args:
        images: how many; size: side in pixels.
        free: bytes on the disk of the cache folder.
        have: which kinds are prepared already, or half.
        dali: whether DALI is there to read a jpeg store.
    """
    raw, jpeg = (expected_bytes(kind, images, size) for kind in ("raw", "jpeg"))
    if "raw" in have:
        return "raw", "prepared before"
    if "jpeg" in have and dali:
        return "jpeg", "prepared before"
    if raw <= DISK_SHARE * free:
        return "raw", f"the disk has room: {size_of(raw)} of {size_of(free)}"
    if not dali:
        return "raw", "DALI, which reads jpeg stores, is not installed"
    return (
        "jpeg",
        f"the disk has {size_of(free)}, too little for {size_of(raw)} of pixels, JPEGs take about {size_of(jpeg)}",
    )


def check_feed(store: Store, asked: Name | None) -> None:
    """Refuses a feed that cannot read `store`, and a store that nothing here can read.

    Raises:
        InputError: says what to do.
    """
    if asked is not None and KIND_OF[asked] != store.kind:
        other = KIND_OF[asked]
        raise InputError(
            f"{store.folder}: --feed {asked} reads {other} stores, this one is {store.kind}: drop --feed, "
            f"or prepare the images again with --kind {other}"
        )
    if store.kind == "jpeg":
        require_dali()


def open_feed(
    train: TaskImages,
    val: TaskImages,
    stream: Stream,
    means: Mapping[str, Tensor],
    *,
    device: torch.device,
    threads: int,
    hw_share: float | None = None,
    **look: Unpack[Augmentation],
) -> Feed:
    """The feed of a task's images that suits this machine at this moment.

    Args:
        threads: CPU threads that the networks are trained with.
        hw_share: see `fasttransfer.pipelines.dali_feed.DaliFeed`.

    The others are those of `fasttransfer.pipelines.store_feed.StoreFeed`.
    """
    kind: Kind = "jpeg" if isinstance(train.part, JpegStorePart) else "raw"
    stored = stored_bytes(train) + stored_bytes(val)
    chosen = choose_feed(kind, stored, device.type, free_memory(kind, device))
    feed: Feed
    if chosen.feed == "dali":
        decoding = threads if device.type == "cpu" else min(_DALI_THREADS, machine.cores())
        feed = DaliFeed(train, val, stream, means, device=device, threads=decoding, hw_share=hw_share, **look)
    else:
        feed = MemoryFeed(train, val, stream, means, device=device, resident=chosen.resident, **look)
    return PrefetchedFeed(feed, partial(_start_thread, device, threads)) if chosen.ahead else feed


def stored_bytes(images: TaskImages) -> int:
    """What the images take as they are stored."""
    part = images.part
    if isinstance(part, JpegStorePart):
        return int(part.index[images.rows, 1].sum())
    return len(images) * part.size * part.size * 3


def free_memory(kind: Kind, device: torch.device) -> int | None:
    """Bytes that are free where images of such a store would be kept, see `choose_feed`."""
    if kind == "raw" and device.type == "cuda":
        gc.collect()  # what was trained before goes first, its memory back to the GPU
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return machine.free_memory()


def free_disk(folder: Path) -> int:
    """Bytes that are free where `folder` is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _start_thread(device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
