"""Choose the feed of a store on this machine, where its images lie meanwhile, and whether batches are made ahead.

The choice does not change which images and views a batch has, so that a study may resume with another. Only the kind of
store that a source becomes is visible, by the loss of JPEG, and is therefore recorded; on a GPU also the last bits of
what its decoder makes of a JPEG.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import format_bytes
from fasttransfer.pipelines.dali_feed import DaliFeed, require_dali
from fasttransfer.pipelines.memory_feed import MemoryFeed
from fasttransfer.pipelines.prefetched_feed import PrefetchedFeed
from fasttransfer.pipelines.store import JpegStorePart, Kind, Store, expected_bytes
from fasttransfer.pipelines.store_feed import Augmentation
from fasttransfer.pipelines.streams import Feed, Stream, TaskImages

Name = Literal["memory", "dali"]

KIND_OF: dict[Name, Kind] = {"memory": "raw", "dali": "jpeg"}

DEVICE_SHARE = 0.75
"""Share of a GPU's free memory that images may take: the networks of a cohort train in the rest."""
HOST_SHARE = 0.5
"""Share of the free memory up to which files are assumed to stay in the page cache once read."""
DISK_SHARE = 0.9
"""Share of the free disk space that a raw store may take."""

_DALI_THREADS = 8  # at most, with a GPU: they only prepare what it decodes


class FeedChoice(NamedTuple):
    """Where the feed of a store takes its images from."""

    resident: bool  # whether a GPU's memory holds the images
    ahead: bool  # whether a thread makes batches ahead
    about: str  # all of it in words


def choose_feed(kind: Kind, images: int, device: str, free: int | None) -> FeedChoice:
    """Return the feed for these sizes; measures nothing.

    Args:
        kind: of the store.
        images: bytes of a task's stored images.
        device: "cpu" or "cuda".
        free: bytes of free memory where images would be held: on the GPU for a raw store, else in the machine; None
            where that is unknown.
    """
    share = DEVICE_SHARE if kind == "raw" and device == "cuda" else HOST_SHARE
    fits = free is None or images <= share * free
    room = "" if free is None else f" ({format_bytes(images)}, {format_bytes(free)} free)"
    if kind == "jpeg":
        by = "on the GPU" if device == "cuda" else "on the CPU"
        files = "from the page cache" if fits else f"from disk, read one batch ahead{room}"
        return FeedChoice(False, not fits, f"dali, decoded {by} {files}")
    if device == "cuda" and free is not None and fits:
        return FeedChoice(True, False, f"memory, held in the GPU's memory{room}")
    if device == "cuda":
        return FeedChoice(False, True, f"memory, through pinned buffers, one batch ahead{room}")
    if fits:
        return FeedChoice(False, False, "memory, mapped, from the page cache")
    return FeedChoice(False, True, f"memory, mapped, from disk, read one batch ahead{room}")


def choose_kind(images: int, size: int, free: int, have: Collection[Kind], *, dali: bool) -> tuple[Kind, str]:
    """Return the kind of store to prepare, and why: raw where the disk has room, because it needs no decoding later.

    Args:
        images: number of images; size: side in pixels.
        free: free bytes on the disk of the cache folder.
        have: kinds that are prepared or started already.
        dali: whether DALI is installed, which reads jpeg stores.
    """
    raw, jpeg = (expected_bytes(kind, images, size) for kind in ("raw", "jpeg"))
    if "raw" in have:
        return "raw", "prepared before"
    if "jpeg" in have and dali:
        return "jpeg", "prepared before"
    if raw <= DISK_SHARE * free:
        return "raw", f"the disk has room: {format_bytes(raw)} of {format_bytes(free)}"
    if not dali:
        return "raw", "DALI, which reads jpeg stores, is not installed"
    return (
        "jpeg",
        f"the disk has {format_bytes(free)}, too little for {format_bytes(raw)} of pixels, JPEGs take about "
        f"{format_bytes(jpeg)}",
    )


def check_feed(store: Store, name: Name | None) -> None:
    """Check that the feed called `name` can read `store`, and that this machine can.

    Raises:
        InputError: it cannot; says what to do.
    """
    if name is not None and KIND_OF[name] != store.kind:
        other = KIND_OF[name]
        raise InputError(
            f"{store.folder}: --feed {name} reads {other} stores, this one is {store.kind}: drop --feed, "
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
    """Return the feed of a task's images that suits this machine at this moment.

    Args:
        threads: CPU threads that train the networks.
        hw_share: see `fasttransfer.pipelines.dali_feed.DaliFeed`.

    The others are those of `fasttransfer.pipelines.store_feed.StoreFeed`.
    """
    kind: Kind = "jpeg" if isinstance(train.part, JpegStorePart) else "raw"
    stored = stored_bytes(train) + stored_bytes(val)
    choice = choose_feed(kind, stored, device.type, free_memory(kind, device))
    feed: Feed
    if kind == "jpeg":
        decoding = threads if device.type == "cpu" else min(_DALI_THREADS, machine.cores())
        feed = DaliFeed(train, val, stream, means, device=device, threads=decoding, hw_share=hw_share, **look)
    else:
        feed = MemoryFeed(train, val, stream, means, device=device, resident=choice.resident, **look)
    return PrefetchedFeed(feed, partial(_start_thread, device, threads)) if choice.ahead else feed


def stored_bytes(images: TaskImages) -> int:
    """Return the bytes that the images take in their store."""
    part = images.part
    if isinstance(part, JpegStorePart):
        return int(part.index[images.rows, 1].sum())
    return len(images) * part.size * part.size * 3


def free_memory(kind: Kind, device: torch.device) -> int | None:
    """Return the free bytes where images of such a store would be held, see `choose_feed`."""
    if kind == "raw" and device.type == "cuda":
        gc.collect()  # so that the memory of networks trained before counts as free
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return machine.free_memory()


def free_disk(folder: Path) -> int:
    """Return the free bytes on the disk where `folder` is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _start_thread(device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
