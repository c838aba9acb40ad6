"""The cuts that are worth keeping on this machine: the time to read one against the time to compute it.

Computing a cut gives all that lie before it, so the decision is one number: up to which cut a source runs live. The
time to fill the cache is no part of it: it is paid once, and every later study reads.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import disk_errors, make_folder
from fasttransfer.core.progress import Log, format_bytes
from fasttransfer.core.tables import plain_table
from fasttransfer.features import cache
from fasttransfer.features.feature_source import FeatureSource, training_conditions
from fasttransfer.features.shards import ShardReader, ShardWriter, should_pack
from fasttransfer.networks.architecture import Architecture, StagedNetwork
from fasttransfer.networks.precision import dtype_of
from fasttransfer.pipelines.choose_feed import DISK_SHARE, HOST_SHARE, free_disk
from fasttransfer.study.recipe import Recipe

_IMAGES = 64  # per timed batch
_TIMES = 3


class CutTiming(NamedTuple):
    """The costs of a cut of one source on this machine.

    Attributes:
        compute: seconds per image from the store to this cut; read: seconds per image from the cache.
        bytes: of a record as it is stored; dense: bytes of one as it is computed, in bfloat16.
    """

    cut: int
    compute: float
    read: float
    bytes: float
    dense: int


def time_cuts(
    net: StagedNetwork, make_images: Callable[[], Tensor], cuts: Collection[int], threads: int, records: int
) -> list[CutTiming]:
    """Time computing and reading each of `cuts`, the fastest of three runs.

    Args:
        net: the source.
        make_images: makes a batch as stage 1 reads it; timed as well.
        cuts: that are kept.
        threads: that read.
        records: of the future entry. Where it will not stay in memory, reads from the disk itself are timed.

    Raises:
        InputError: the cache, on whose disk features are written for a moment, cannot be written.
    """
    root = make_folder(cache.cache_root())
    x = make_images()
    seconds, n = _fastest(make_images, x.device), len(x)
    timings = []
    with torch.no_grad():
        for stage in range(1, max(cuts) + 1):
            seconds += _fastest(partial(net, x, start=stage - 1, stop=stage), x.device)
            x = net(x, start=stage - 1, stop=stage)
            if stage in cuts:
                rounded = x.to(torch.bfloat16)
                bytes_, read = _time_reading(rounded.cpu(), root, threads, records)
                timings.append(CutTiming(stage, seconds / n, read / n, bytes_ / n, 2 * rounded[0].numel()))
    return timings


def choose_cuts(timings: Iterable[CutTiming], records: int, room: float) -> frozenset[int]:
    """Return the cuts to keep: those behind the one up to which it is fastest to run live, if the disk has room.

    Args:
        timings: of the cuts that cells read.
        records: of an entry; room: bytes that all entries may take.
    """
    timings = sorted(timings, key=lambda timing: timing.cut)
    choices = []
    for live in range(len(timings) + 1):
        seconds = (timings[live - 1].compute if live else 0.0) + sum(timing.read for timing in timings[live:])
        if sum(timing.bytes for timing in timings[live:]) * records <= room:
            choices.append((seconds, live))
    return frozenset(timing.cut for timing in timings[min(choices)[1] :])


def cuts_worth_keeping(source: FeatureSource, cuts: Collection[int], log: Log) -> frozenset[int]:
    """Return those of `cuts` that are worth keeping in the cache; none where it cannot be written, which is logged."""
    train, study = source.images["train"], source.study
    records = source.sweep(train).records + len(source.images["val"])
    few = source.sweep(train, min(_IMAGES, study.recipe.batch))
    net = source.network(max(cuts))
    with closing(source.open_feed(train, few)) as feed:
        try:
            timings = time_cuts(net, lambda: feed.train(0).images[source.means_of], cuts, study.threads, records)
        except InputError as error:
            log(f"features of {source.label} are not kept but computed live: {error}")
            return frozenset()
    return choose_cuts(timings, records, _free_room())


def _free_room() -> float:
    """Return the bytes that entries may take on the disk of the cache."""
    return DISK_SHARE * free_disk(cache.cache_root())


def forecast_cuts(
    recipe: Recipe, records: int, cuts: Collection[int], *, device: str, precision: str, threads: int
) -> Table:
    """Return a table of the decisions for a source that is not trained yet: random values and images stand for it.

    Trained networks leave more zeros, so entries will be smaller rather than larger.

    Args:
        records: of a source over the images of a task: training images times views, and validation images.
        cuts: that frozen cells read.

    Raises:
        InputError: the cache cannot be written.
    """
    network = recipe.network
    net = network.build(2, precision, torch.device(device))
    net.load(network.draw(2, recipe.init, lambda stage: stage))
    net.freeze()
    form = network.input_form(device, dtype_of(precision))
    shape = min(_IMAGES, recipe.batch), 3 * form["block"] ** 2, form["side"], form["side"]
    with training_conditions(threads):
        images = torch.randn(shape, device=device) * 64 * recipe.pixel_scale  # of pixel differences
        images = images.to(form["dtype"]).contiguous(memory_format=torch.channels_last)
        timings = time_cuts(net, lambda: images, cuts, threads, records)
    room = _free_room()
    choice = choose_cuts(timings, records, room)
    table = plain_table("cut", "computed", "read", "packed", "on disk", "decision")
    for column in table.columns[1:5]:
        column.justify = "right"
    for timing in timings:
        size = timing.bytes * records
        table.add_row(
            str(timing.cut),
            f"{1e6 * timing.compute:,.1f} µs",
            f"{1e6 * timing.read:,.1f} µs",
            f"{timing.bytes / timing.dense:.0%}",
            format_bytes(size),
            "kept" if timing.cut in choice else "live" if size <= room else "live, the disk has no room",
        )
    return table


def cuts_read(network: Architecture, layers: Iterable[int]) -> tuple[int, ...]:
    """Return the cuts that cells frozen at these n read."""
    return tuple(sorted({network.kept_cut(n) for n in layers}))


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _time_reading(features: Tensor, root: Path, threads: int, records: int) -> tuple[int, float]:
    """Return the bytes that `features` take on the disk of `root`, and the seconds to read them in another order."""
    shape, entry = features.shape[1:], "measured"
    with disk_errors(root), tempfile.TemporaryFile(dir=root) as file:  # without a name: nothing is ever left
        writer = ShardWriter(file.fileno(), entry, 0, 0, shape, should_pack(features))
        writer.append(features)
        writer.finish()
        os.fsync(file.fileno())
        free = machine.free_memory()
        is_cold = free is not None and writer.bytes / len(features) * records > HOST_SHARE * free
        path = Path(f"/proc/self/fd/{file.fileno()}")
        with ShardReader([path], entry=entry, shape=shape, threads=threads) as reader:
            order = torch.arange(len(features)).flip(0)

            def read() -> None:
                if is_cold:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                reader.read(order)

            return writer.bytes, _fastest(read, features.device)
