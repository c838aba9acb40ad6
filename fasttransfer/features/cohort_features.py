"""The cuts that a cohort reads from the cache: those that are there, and those that pay once they are computed.

All others run live. The result is the same: a cut has the same bits wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from typing import Literal

from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import Log
from fasttransfer.features import cache, worth_keeping
from fasttransfer.features.cache_entry import CacheEntry
from fasttransfer.features.cached_feed import CachedFeed, CutsNeeded
from fasttransfer.features.feature_source import FeatureSource, Part
from fasttransfer.networks.prefix import cut_name, kept_cut
from fasttransfer.pipelines.streams import Feed, Stream
from fasttransfer.study.cells import Cell, frozen_by_source


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
) -> Feed:
    """Open the feed of a cohort in a study with views: what the cache holds, or holds after filling, comes from it.

    Where the cache cannot be written, that is logged and the cells go on live.

    Args:
        sources: `Cell.source` -> what the frozen ones among `cells` copy, all over the same images.
        cells: of one target and seed.
        stream: the training images in the order of training.
        open_images: opens the feed of images under these means.
        mode: "cache" keeps every cut, "auto" those that are read faster than they are computed.
        log: told what comes from the cache; progress: told how far filling is; stop: ends it by returning True.
    """
    cuts = {
        name: tuple(sorted({kept_cut(cell.n) for cell in frozen}))
        for name, frozen in sorted(frozen_by_source(cells).items())
    }
    entries: dict[Part, dict[str, CacheEntry]] = {"train": {}, "val": {}}
    for name, needed in cuts.items():
        by_part: dict[Part, FeatureSource] = {"train": sources[name], "val": sources[name].with_first_view()}
        kept = needed if mode == "cache" else _choose_cuts(by_part, needed, log)
        for part, source in by_part.items():
            by_cut = source.find_or_fill(part, kept, log=log, progress=progress, stop=stop)
            entries[part] |= {cut_name(name, cut): entry for cut, entry in by_cut.items()}
    needs = CutsNeeded(
        {cut_name(name, cut): sources[name].mean_of for name, needed in cuts.items() for cut in needed},
        frozenset(cell.mean_of for cell in cells if not cell.frozen),
    )
    source = next(iter(sources.values()))
    feed = CachedFeed(
        needs,
        entries,
        source.images["train"],
        source.images["val"],
        stream,
        open_images,
        device=source.device,
        threads=source.study.threads,
        log=log,
    )
    cached = ", ".join(name for name in needs.cuts if name in entries["train"])
    live = ", ".join(name for name in needs.cuts if name not in entries["train"])
    parts = [f"{cached} {feed.place}"] * bool(cached) + [f"{live} live"] * bool(live)
    log(f"features of task {source.task}'s frozen cells: {'; '.join(parts)}")
    return feed


def _choose_cuts(by_part: Mapping[Part, FeatureSource], cuts: Collection[int], log: Log) -> list[int]:
    """Return those of `cuts` that the cache holds for both parts, and those that are worth filling it with."""
    held = set(cuts).intersection(*(source.find(part, cuts, log=log) for part, source in by_part.items()))
    missing = set(cuts) - held
    return sorted(held | _worth_keeping(by_part["train"], missing, log)) if missing else sorted(held)


def _worth_keeping(source: FeatureSource, cuts: Collection[int], log: Log) -> frozenset[int]:
    root, train = cache.cache_root(), source.images["train"]
    records = source.sweep(train).records + len(source.images["val"])
    few = source.sweep(train, min(worth_keeping.IMAGES, source.study.recipe.batch))
    with closing(source.open_feed(train, few)) as feed:
        try:
            timings = worth_keeping.time_cuts(
                source.network(max(cuts)),
                lambda: feed.train(0).images[source.mean_of],
                cuts,
                root,
                threads=source.study.threads,
                records=records,
            )
        except InputError as error:
            log(f"features of {source.label} are not kept but computed live: {error}")
            return frozenset()
    return worth_keeping.choose_cuts(timings, records, worth_keeping.free_room(root))
