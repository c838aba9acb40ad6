"""Which cuts are worth keeping on this machine: what it takes to read one against what it takes to compute it.

Computing a cut gives all that lie before it, so the question is one number: up to which cut a source runs live. What
filling the cache takes is no part of it: that is paid once, and reading goes on in every study that comes after.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.core.files import disk_errors, make_folder
from fasttransfer.core.progress import format_bytes
from fasttransfer.features import cache
from fasttransfer.features.shards import ShardReader, ShardWriter
from fasttransfer.networks import inputs
from fasttransfer.networks.caffenet import CaffeNet, draw_weights
from fasttransfer.networks.prefix import DEEPEST
from fasttransfer.pipelines.choose_feed import DISK_SHARE, HOST_SHARE, free_disk
from fasttransfer.study.recipe import Recipe

IMAGES = 64
"""What is timed at a time."""
_TIMES = 3
_DENSE = 15 / 16  # share of features that are not zero, from which a mask takes more than it saves


@dataclass(frozen=True)
class CutTiming:
    """A cut of one source on this machine.

    Attributes:
        compute: seconds per image from the store to this cut; read: seconds per image from the cache.
        bytes: of a record as it is stored; dense: as it is computed, in bfloat16.
    """

    cut: int
    compute: float
    read: float
    bytes: float
    dense: int


def time_cuts(
    net: CaffeNet,
    make_images: Callable[[], Tensor],
    cuts: Collection[int],
    root: Path,
    *,
    threads: int,
    records: int = 0,
) -> list[CutTiming]:
    """Times a few steps of each way, the fastest of three.

    Args:
        net: the source.
        make_images: a batch as stage 1 reads it; timed as well.
        cuts: which, 1 to 6.
        root: the folder of the cache, on whose disk the features are written for a moment.
        threads: that read.
        records: of the entry to be. Where it will not stay in memory, the disk itself is measured.

    Raises:
        InputError: the folder cannot be written.
    """
    make_folder(root)
    x = make_images()
    seconds, n = _fastest(make_images, x.device), len(x)
    found = []
    with torch.no_grad():
        for stage in range(1, max(cuts) + 1):
            seconds += _fastest(partial(net, x, start=stage - 1, stop=stage), x.device)
            x = net(x, start=stage - 1, stop=stage)
            if stage in cuts:
                rounded = x.to(torch.bfloat16)
                bytes_, read = _read(rounded.cpu(), root, threads, records)
                found.append(CutTiming(stage, seconds / n, read / n, bytes_ / n, 2 * rounded[0].numel()))
    return found


def choose_cuts(measured: Iterable[CutTiming], records: int, room: float) -> frozenset[int]:
    """The cuts to keep: those behind the one up to which it is fastest to run live, as far as the disk has room.

    Args:
        measured: the cuts that cells read.
        records: of an entry; room: bytes that all entries may take.
    """
    measured = sorted(measured, key=lambda m: m.cut)
    ways = []
    for live in range(len(measured) + 1):
        kept = measured[live:]
        seconds = (measured[live - 1].compute if live else 0.0) + sum(m.read for m in kept)
        if sum(m.bytes for m in kept) * records <= room:
            ways.append((seconds, live))
    return frozenset(m.cut for m in measured[min(ways)[1] :])


def free_room(root: Path) -> float:
    """Bytes that entries may take on the disk of `root`."""
    return DISK_SHARE * free_disk(root)


def cuts_table(measured: Iterable[CutTiming], records: int, room: float) -> Table:
    """The decisions for one source over the images of one task, for rich."""
    measured = list(measured)
    kept = choose_cuts(measured, records, room)
    rows = Table(box=None, pad_edge=False, header_style="bold")
    rows.add_column("cut")
    for heading in ("computed", "read", "packed", "on disk"):
        rows.add_column(heading, justify="right")
    rows.add_column("so it is")
    for m in measured:
        rows.add_row(
            str(m.cut),
            _micro(m.compute),
            _micro(m.read),
            f"{m.bytes / m.dense:.0%}",
            format_bytes(m.bytes * records),
            "kept" if m.cut in kept else "live" if m.bytes * records <= room else "live, the disk has no room",
        )
    return rows


def forecast_cuts(
    recipe: Recipe, records: int, cuts: Collection[int], *, device: str, precision: str, threads: int
) -> Table:
    """As `cuts_table`, before there is any network: its initial values on random images stand for it.

    Trained networks leave more zeros, so entries will be smaller rather than larger.

    Args:
        records: of a source over the images of a task: training images times views, and validation images.
        cuts: that frozen cells read, 1 to 6.

    Raises:
        InputError: the cache cannot be written.
    """
    geometry = recipe.geometry
    net = CaffeNet(geometry, 2, inputs.dtype_of(precision))
    net.load(draw_weights(geometry, 2, recipe.init, lambda stage: stage))
    net = net.to(device).requires_grad_(False)
    looks = inputs.choose_input_form(geometry, device, precision)
    shape = 3 * looks["block"] ** 2, looks["side"], looks["side"]
    spread = 64 * recipe.scale  # of pixel differences

    def make_images() -> Tensor:
        x = torch.randn(min(IMAGES, recipe.batch), *shape, device=device) * spread
        return x.to(looks["dtype"]).contiguous(memory_format=torch.channels_last)

    root = cache.cache_root()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        drawn = make_images()
        measured = time_cuts(net, lambda: drawn, cuts, root, threads=threads, records=records)
    finally:
        torch.set_num_threads(before)
    return cuts_table(measured, records, free_room(root))


def cuts_read(layers: Iterable[int]) -> tuple[int, ...]:
    """The cuts that cells frozen at these n read."""
    return tuple(sorted({min(n, DEEPEST) for n in layers}))


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _read(features: Tensor, root: Path, threads: int, records: int) -> tuple[int, float]:
    """What `features` take on the disk of `root`, and the seconds to read them in another order."""
    packed = int(features.count_nonzero()) < _DENSE * features.numel()
    shape, entry = features.shape[1:], "measured"
    with disk_errors(root), tempfile.TemporaryFile(dir=root) as file:  # without a name: nothing is ever left
        writer = ShardWriter(file.fileno(), entry, 0, 0, shape, packed)
        writer.append(features)
        writer.finish()
        os.fsync(file.fileno())
        free = machine.free_memory()
        cold = free is not None and writer.bytes / len(features) * records > HOST_SHARE * free
        path = Path(f"/proc/self/fd/{file.fileno()}")
        with ShardReader([path], entry=entry, shape=shape, threads=threads) as reader:
            order = torch.arange(len(features)).flip(0)

            def read() -> None:
                if cold:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                reader.read(order)

            return writer.bytes, _fastest(read, features.device)


def _micro(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f} µs"
