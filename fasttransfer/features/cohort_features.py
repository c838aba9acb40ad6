"""Which cuts a cohort gets from the cache: what is there is read, what pays is computed and kept, the rest runs live.

None of that changes a result: a cut has the same bits wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import Log
from fasttransfer.features import cache, worth_keeping
from fasttransfer.features.cache import CacheEntry, EntryInfo
from fasttransfer.features.cache_key import CacheKey, images_digest, make_key
from fasttransfer.features.cached_feed import CachedFeed, CutsNeeded, Part
from fasttransfer.features.fill import FillStopped, fill_entries
from fasttransfer.networks import inputs
from fasttransfer.networks.caffenet import CaffeNet
from fasttransfer.networks.prefix import cut_name, kept_cut
from fasttransfer.pipelines.streams import Feed, Stream, Sweep, TaskImages
from fasttransfer.study.cells import Cell, frozen_by_source
from fasttransfer.study.configuration import Study

Means = Mapping[str, Tensor]
OpenFeed = Callable[[TaskImages, TaskImages, Stream, Means], Feed]


@dataclass(frozen=True)
class FrozenPrefix:
    """A source that frozen cells copy from.

    Attributes:
        name: "A", "B", "R" or "H", see `Cell.source`; network: what people call it, e.g. "baseA.s0".
        mean: the task whose mean image it sees.
        weights: float32, under Caffe's names, at least of the stages up to the deepest cut.
        cuts: those that cells read, 1 to 6, rising.
    """

    name: str
    network: str
    mean: str
    weights: Mapping[str, Tensor]
    cuts: tuple[int, ...]


@dataclass(frozen=True)
class CohortFeatures:
    """What a cohort is trained on, as far as its features depend on it.

    Attributes:
        folder: of the study; data: digest of the store; decodes: whether its pixels are decoded on the way.
        task: the target; classes: those of the task, in label order.
        images: those of each part; stream: the training images as they are shown.
        means: of all cells, task -> (S, S, 3) float32.
        open_feed: a feed of images (training, validation) in the order of a stream, under some means.
    """

    study: Study
    folder: Path
    data: str
    decodes: bool
    task: str
    classes: tuple[str, ...]
    images: Mapping[Part, TaskImages]
    stream: Stream
    means: Means
    open_feed: OpenFeed
    device: torch.device


def frozen_prefixes(cells: Sequence[Cell], sources: Mapping[str, Mapping[str, Tensor]]) -> list[FrozenPrefix]:
    """The sources of the frozen ones among `cells`, all of one target and seed; `sources` are weights by name."""
    return [
        FrozenPrefix(
            name,
            of[0].needs.label if of[0].needs else f"{name}.{of[0].target}.s{of[0].seed}",
            of[0].mean_of,
            sources[name],
            tuple(sorted({kept_cut(cell.n) for cell in of})),
        )
        for name, of in sorted(frozen_by_source(cells).items())
    ]


def open_cached_feed(
    shown: CohortFeatures,
    cells: Sequence[Cell],
    prefixes: Sequence[FrozenPrefix],
    mode: Literal["auto", "cache"],
    *,
    log: Log,
    progress: Log,
    stop: Callable[[], bool],
) -> Feed:
    """The feed of a cohort in a study with views: what the cache holds, or will hold when this returns, comes from it.

    Where the cache cannot be written that is said, and the cells go on live.

    Args:
        mode: "cache" keeps every cut, "auto" those that are read faster than they are computed.
        say: told what stays to be read; progress: how far filling is; stop: ends it, for the cells to run live.
    """
    root = cache.cache_root()
    entries: dict[Part, dict[str, CacheEntry]] = {"train": {}, "val": {}}
    for prefix in prefixes:
        keys = entry_keys(shown, prefix)
        chosen = prefix.cuts
        if mode == "auto":
            known = {cut for cut in prefix.cuts if all(_find(root, keys[part][cut], log) for part in keys)}
            if missing := set(prefix.cuts) - known:
                known |= _worth_keeping(root, shown, prefix, missing, log)
                chosen = tuple(sorted(known))
        for part, by_cut in keys.items():
            wanted = {cut: key for cut, key in by_cut.items() if cut in chosen}
            if any(_find(root, key, log) is None for key in wanted.values()):
                try:
                    _fill(root, shown, prefix, part, wanted, log=log, progress=progress, stop=stop)
                except FillStopped:
                    pass
                except InputError as error:
                    log(f"features of {prefix.network} are not kept, its cells run live: {error}")
            for cut, key in wanted.items():
                if entry := _find(root, key, log):
                    entries[part][cut_name(prefix.name, cut)] = entry
    needs = CutsNeeded(
        {cut_name(prefix.name, cut): prefix.mean for prefix in prefixes for cut in prefix.cuts},
        frozenset(cell.mean_of for cell in cells if not cell.frozen),
    )
    train, val = shown.images["train"], shown.images["val"]
    feed = CachedFeed(
        needs,
        entries,
        train,
        val,
        shown.stream,
        lambda means: shown.open_feed(train, val, shown.stream, {t: shown.means[t] for t in sorted(means)}),
        device=shown.device,
        threads=shown.study.threads,
        log=log,
    )
    read = [name for name in needs.cuts if name in entries["train"]]
    live = [name for name in needs.cuts if name not in entries["train"]]
    told = [f"{', '.join(read)} {feed.about}"] if read else []
    told += [f"{', '.join(live)} live"] if live else []
    log(f"features of task {shown.task}'s frozen cells: {'; '.join(told)}")
    return feed


def entry_keys(shown: CohortFeatures, prefix: FrozenPrefix) -> dict[Part, dict[int, CacheKey]]:
    """part -> cut -> the key of its entry: training images in the study's views, validation images in view 0."""
    study, views = shown.study, shown.stream.choices
    found: dict[Part, dict[int, CacheKey]] = {}
    for part, images in shown.images.items():
        digest = images_digest(shown.data, part, images.rows)
        found[part] = {
            cut: make_key(
                study,
                prefix.weights,
                shown.means[prefix.mean],
                cut,
                digest,
                views[: None if part == "train" else 1],
                device=study.device,
                decodes=shown.decodes,
            )
            for cut in prefix.cuts
        }
    return found


def entry_sweep(shown: CohortFeatures, part: Part) -> Sweep:
    """All records of an entry over `part`, in their order."""
    views = shown.stream.choices if part == "train" else shown.stream.choices[:1]
    stream = shown.stream
    return Sweep(0, 0, len(shown.images[part]), stream.batch, stream.margin, views)


def prefix_network(shown: CohortFeatures, prefix: FrozenPrefix) -> CaffeNet:
    """The source as it computes its cuts."""
    study = shown.study
    deepest = prefix.cuts[-1]
    net = CaffeNet(study.recipe.geometry, 1, inputs.dtype_of(study.precision))
    del net.stages[deepest:]
    net.load(prefix.weights, 0, deepest)
    return net.to(shown.device).requires_grad_(False)


def _worth_keeping(
    root: Path, shown: CohortFeatures, prefix: FrozenPrefix, missing: set[int], log: Log
) -> frozenset[int]:
    sweep, part = entry_sweep(shown, "train"), shown.images["train"]
    means = {prefix.mean: shown.means[prefix.mean]}
    few = Sweep(0, 0, sweep.images, min(worth_keeping.IMAGES, sweep.batch), sweep.margin, sweep.choices)
    records = sweep.records + len(shown.images["val"])
    with closing(shown.open_feed(part, part, few, means)) as feed:
        try:
            measured = worth_keeping.time_cuts(
                prefix_network(shown, prefix),
                lambda: feed.train(0).images[prefix.mean],
                missing,
                root,
                threads=shown.study.threads,
                records=records,
            )
        except InputError as error:
            log(f"features of {prefix.network} are not kept, its cells run live: {error}")
            return frozenset()
    return worth_keeping.choose_cuts(measured, records, worth_keeping.free_room(root))


def _fill(
    root: Path,
    shown: CohortFeatures,
    prefix: FrozenPrefix,
    part: Part,
    wanted: Mapping[int, CacheKey],
    *,
    log: Log,
    progress: Log,
    stop: Callable[[], bool],
) -> None:
    about = EntryInfo(prefix.network, str(shown.folder), shown.study.data, part, shown.task, shown.classes)
    images = shown.images[part]
    fill_entries(
        root,
        [(key, about) for key in wanted.values()],
        images,
        prefix_network(shown, prefix),
        entry_sweep(shown, part),
        lambda sweep: shown.open_feed(images, images, sweep, {prefix.mean: shown.means[prefix.mean]}),
        prefix.mean,
        log=log,
        progress=progress,
        stop=stop,
    )


def _find(root: Path, key: CacheKey, log: Log) -> CacheEntry | None:
    """As `cache.find`; an entry that cannot be read is said, and not there."""
    try:
        return cache.find_entry(root, key, log)
    except InputError as error:
        log(f"cut {key.cut} runs live: {error}")
        return None
