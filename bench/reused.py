"""One study three times: features computed live, computed and cached, and read from the cache.

    python -m bench.reused --data tiny-imagenet-200

Each runs `fasttransfer grid` as a user would, in a process and a folder of its own, on images that are prepared
before. All three must find the same. Writes bench/results/reused.json: command, machine, seconds of each run, what the
cache takes, and the table of the report.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.studies import table, write_result
from fasttransfer.study import records

STUDY = ["--split", "natural-manmade", "--classes", "10", "--epochs", "20", "--views", "10",
         "--treatments", "selffer", "transfer", "random"]  # fmt: skip
RUNS = {"live": "live", "first": "cache", "second": "cache"}  # name -> --features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images in Tiny-ImageNet's layout")
    data = parser.parse_args().data
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FASTTRANSFER_CACHE"] = f"{scratch}/cache"
        program = [sys.executable, "-m", "fasttransfer"]
        store = f"{scratch}/store"
        subprocess.run([*program, "data", "prepare", data, store, "--size", "64"], check=True)
        seconds, found = {}, {}
        for name, features in RUNS.items():
            out = Path(scratch) / name
            start = time.monotonic()
            subprocess.run(
                [*program, "grid", *STUDY, "--data", store, "--features", features, "--out", str(out)], check=True
            )
            seconds[name] = round(time.monotonic() - start, 1)
            found[name] = records.read_results(out)
        assert found["live"].results == found["first"].results == found["second"].results
        kept = sum(path.stat().st_size for path in Path(scratch, "cache", "features").rglob("*.shard"))
    write_result(
        "reused",
        "python -m bench.reused --data tiny-imagenet-200",
        study=" ".join(["fasttransfer", "grid", *STUDY]),
        seconds=seconds,
        first_over_second=round(seconds["first"] / seconds["second"], 2),
        live_over_second=round(seconds["live"] / seconds["second"], 2),
        cache_bytes=kept,
        table=table(found["second"]),
    )


if __name__ == "__main__":
    main()
