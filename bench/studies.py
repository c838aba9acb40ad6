"""Whole studies, timed: what the README's tables and the default study's time come from.

    python bench/studies.py builtin
    python bench/studies.py builtin-bases-bf16
    python bench/studies.py tiny-natural-manmade --data tiny-imagenet-200
    python bench/studies.py tiny-random-0 --data tiny-imagenet-200

Each runs `fasttransfer grid` as a user would, in a process of its own and an empty cache, and writes
bench/results/study-<name>.json: command, machine, wall seconds, peak memory, and the table of the report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from fasttransfer import analysis, info, records

# `--treatments` without a word after it: bases only.
STUDIES = {
    "builtin": ["--split", "natural-manmade"],
    "tiny-natural-manmade": ["--split", "natural-manmade", "--classes", "40", "--epochs", "10"],
    "tiny-random-0": ["--split", "random:0", "--classes", "40", "--epochs", "10"],
    "builtin-bases-fp32": ["--treatments", "--seeds", *map(str, range(16)), "--precision", "fp32"],
    "builtin-bases-bf16": ["--treatments", "--seeds", *map(str, range(16)), "--precision", "bf16"],
    "tiny-bases-20": ["--split", "natural-manmade", "--classes", "40", "--epochs", "20", "--treatments"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", help="pictures, for all but builtin")
    parser.add_argument("--out", type=Path, help="where the study is kept; by default it is thrown away")
    chosen = parser.parse_args()
    command = ["grid", *STUDIES[chosen.study]]
    if chosen.data:
        command += ["--data", chosen.data]
    with tempfile.TemporaryDirectory() as scratch:
        out = chosen.out or Path(scratch) / "run"
        environment = os.environ | {"FASTTRANSFER_CACHE": f"{scratch}/cache"}
        start = time.monotonic()
        grid = subprocess.Popen([sys.executable, "-m", "fasttransfer", *command, "--out", str(out)], env=environment)
        peak = Peak(grid.pid)
        if grid.wait() != 0:
            sys.exit(grid.returncode)
        seconds = time.monotonic() - start
        result = {
            "command": " ".join(["fasttransfer", "grid", *STUDIES[chosen.study]]),
            "machine": info.measured_on(),
            "wall_seconds": round(seconds, 1),
            "peak_memory_bytes": peak.stop(),
            "table": table(records.read(out)),
        }
    path = Path(__file__).parent / "results" / f"study-{chosen.study}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{path}: {seconds:.0f} s")


def table(recorded: records.Recorded) -> dict[str, Any]:
    """Top-1 at the last check: of each seed's bases, then n -> treatment -> the mean over targets and seeds."""
    summary = analysis.summarise(recorded.results)
    return {
        "base": {
            target: [r.last_top1 for r in recorded.results if r.treatment == "base" and r.target == target]
            for target in sorted({r.target for r in recorded.results})
        },
        "n": {row.n: {t: round(e.value, 4) for t, e in row.top1.items()} for row in summary.rows},
    }


class Peak:
    """The largest sum of resident memory of a process and its children (Linux), looked at twice a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most, self._over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Ends the watch; bytes. Pages that processes share are counted once (proportional set size)."""
        self._over.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._most = max(self._most, sum(memory(pid) for pid in family(self._pid)))


def family(pid: int) -> list[int]:
    """`pid` and its living descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            found += family(int(child))
    return found


def memory(pid: int) -> int:
    """Proportional set size in bytes; 0 when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
