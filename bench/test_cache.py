"""The cost of an entry of the feature cache: making, finding, opening, checking and exporting it.

Records are of the paper's cut 5, 256 x 6 x 6, and half of their elements are not zero. Making has an fsync per shard.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fasttransfer.features import cache
from fasttransfer.features.cache_entry import EntryInfo
from fasttransfer.features.cache_key import CacheKey, versions
from fasttransfer.features.export import export
from fasttransfer.networks.caffenet import CAFFENET
from fasttransfer.pipelines.store import RawStorePart
from fasttransfer.pipelines.streams import TaskImages

BATCH = 256
ABOUT = EntryInfo("bench", "", "drawn", "train", "A", ("something",))


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Return the seconds of the fastest of some calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def test_entry(benchmark: Any, tmp_path: Path, quick: bool) -> None:
    batches = 12 if quick else 120
    n = batches * BATCH
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((BATCH, *CAFFENET.cut_shape(5)), generator=generator).relu().bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    images = TaskImages(
        RawStorePart(np.zeros(0, np.int64), (), np.zeros(0, np.int64), 256), np.arange(n), np.zeros(n, np.int64)
    )
    key = CacheKey(
        "weights",
        "mean",
        1.0,
        CAFFENET.facts(),
        5,
        CAFFENET.cut_shape(5),
        "images",
        ((14, 14, False),),
        "fp32",
        "cpu",
        1,
        BATCH,
        versions("cpu"),
    )

    def make() -> None:
        with cache.make_entries(tmp_path, [(key, ABOUT)], images) as (writer,):
            for _ in range(batches):
                writer.append(x)

    benchmark.pedantic(make)
    entry = cache.find_entry(tmp_path, key)
    assert entry is not None
    gigabytes = entry.dense / 1e9
    found = {
        "shards": len(entry.shards),
        "of_dense": round(entry.bytes / entry.dense, 4),
        "digest_us": round(1e6 * seconds(key.digest, 20), 1),
        "find_ms": round(1e3 * seconds(lambda: cache.find_entry(tmp_path, key), 20), 2),
        "open_ms": round(1e3 * seconds(lambda: entry.open().close(), 20), 2),
        "use_us": round(1e6 * seconds(entry.count_use, 20), 1),
        "make_gb_s": round(gigabytes / benchmark.stats.stats.median, 2),
        "verify_gb_s": round(gigabytes / seconds(entry.verify, 3), 2),
        "export_safetensors_gb_s": round(gigabytes / seconds(lambda: export(entry, tmp_path / "x.safetensors")), 2),
    }
    making = {"make": [benchmark.stats.stats.median]}
    benchmark.extra_info.update({"work": [entry.dense, "bytes"], "seconds": making, **found})
    print(found, flush=True)
