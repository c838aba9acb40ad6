"""Filling the cache: every cut that is wanted of one source over some images, in one forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from fasttransfer.core.progress import Log, format_duration
from fasttransfer.features.cache import EntryInfo, make_entries
from fasttransfer.features.cache_key import CacheKey
from fasttransfer.networks.caffenet import CaffeNet
from fasttransfer.networks.prefix import rounded_cuts
from fasttransfer.pipelines.streams import Feed, Sweep, TaskImages

TELL_SECONDS = 1.0


class FillStopped(Exception):
    """Filling was asked to stop; nothing of it is in the cache."""


def fill_entries(
    root: Path,
    wanted: Sequence[tuple[CacheKey, EntryInfo]],
    images: TaskImages,
    net: CaffeNet,
    sweep: Sweep,
    open_feed: Callable[[Sweep], Feed],
    mean: str,
    *,
    log: Log,
    progress: Log,
    stop: Callable[[], bool],
) -> None:
    """Computes the entries of `wanted` that are not there, and puts them into the cache at `root` all at once.

    Args:
        wanted: cuts of one source over `images` in the views of `sweep`, and what to say of them.
        net: the source, on the device that computes.
        open_feed: the feed of the images in the order of `sweep`; not called where nothing has to be computed.
        mean: the one whose images the source reads, see `fasttransfer.pipelines.streams.Batch`.
        say: told when another process computes what is wanted, and waited for.
        progress: told how far it is.
        stop: asked before every batch.

    Raises:
        Stopped: `stop` said so.
        InputError: the disk is full, read-only or not ours to write; an image cannot be read.
    """
    with make_entries(root, wanted, images, log) as writers:
        if not writers:
            return
        start = told = time.monotonic()
        cuts = [writer.key.cut for writer in writers]
        about = writers[0].about
        with closing(open_feed(sweep)) as feed:
            for step in range(sweep.steps):
                if stop():
                    raise FillStopped
                batch = feed.train(step)
                found = rounded_cuts(net, batch.images[mean], cuts, sweep.batch)
                left = min(sweep.batch, sweep.records - step * sweep.batch)
                for writer in writers:
                    writer.append(found[writer.key.cut][:left].cpu())
                now = time.monotonic()
                if now - told >= TELL_SECONDS:
                    told, share = now, (step + 1) / sweep.steps
                    remaining = format_duration((now - start) / share * (1 - share))
                    progress(f"features of {about.network} on task {about.task}: {share:.0%}, {remaining} left")
