"""What an entry of the feature cache costs beside its features: to make, find, open, check and hand on.

    python bench/cache.py

Records are of the paper's cut 5, 256 x 6 x 6, and half of their elements are not zero. Rates are GB of dense features a
second; making has an fsync a shard. Writes bench/results/cache.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fasttransfer.core.files import replace_file
from fasttransfer.features import cache
from fasttransfer.features.cache_entry import EntryInfo
from fasttransfer.features.cache_key import CacheKey, versions
from fasttransfer.features.export import export
from fasttransfer.networks.geometry import CAFFENET
from fasttransfer.pipelines.store import RawStorePart
from fasttransfer.pipelines.streams import TaskImages
from fasttransfer.study import environment

BATCH = 256
ABOUT = EntryInfo("bench", "", "drawn", "train", "A", ("something",))


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Of one call, the fastest of `times`."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the records")
    parser.add_argument("--folder", type=Path, help="where to make the entry; by default the system's temporary folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cache.json")
    chosen = parser.parse_args()
    batches = 12 if chosen.quick else 120
    n = batches * BATCH
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((BATCH, *CAFFENET.cut_shape(5)), generator=generator).relu().bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    images = TaskImages(
        RawStorePart(np.zeros(0, np.int64), (), np.zeros(0, np.int64), 256), np.arange(n), np.zeros(n, np.int64)
    )
    key = CacheKey(
        "weights", "mean", 1.0, CAFFENET, 5, "images", ((14, 14, False),), "fp32", "cpu", 1, BATCH, versions("cpu")
    )
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        root = Path(folder)

        def make() -> None:
            with cache.make_entries(root, [(key, ABOUT)], images) as (writer,):
                for _ in range(batches):
                    writer.append(x)

        making = seconds(make)
        entry = cache.find_entry(root, key)
        assert entry is not None
        gigabytes = entry.dense / 1e9
        found = {
            "records": n,
            "shards": len(entry.shards),
            "dense_gb": round(gigabytes, 2),
            "of_dense": round(entry.bytes / entry.dense, 4),
            "digest_us": round(1e6 * seconds(key.digest, 20), 1),
            "find_ms": round(1e3 * seconds(lambda: cache.find_entry(root, key), 20), 2),
            "open_ms": round(1e3 * seconds(lambda: entry.open().close(), 20), 2),
            "use_us": round(1e6 * seconds(entry.count_use, 20), 1),
            "make_gb_s": round(gigabytes / making, 2),
            "verify_gb_s": round(gigabytes / seconds(entry.verify, 3), 2),
            "export_safetensors_gb_s": round(gigabytes / seconds(lambda: export(entry, root / "x.safetensors")), 2),
        }
    result = {"command": "python bench/cache.py", "machine": environment.describe_machine(), **found}
    print(json.dumps(found, indent=1))
    if not chosen.quick:
        with replace_file(chosen.out, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
