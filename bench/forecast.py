"""The predictions of `grid --dry-run` against what the studies then take.

    python -m bench.forecast            # about 25 minutes on two cores
    python -m bench.forecast --quick    # about four

Each study is predicted, then trained by `fasttransfer grid` in a process of its own, in the same cache. Writes
bench/results/forecast.json: of each study wall seconds in parts, peak memory of all processes and bytes on the disk,
predicted and taken, and their ratios.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.studies import write_result
from fasttransfer.bench.grid import PeakMemory
from fasttransfer.core.files import cache_folder
from fasttransfer.pipelines import synthetic
from fasttransfer.study.configuration import Choices
from fasttransfer.training import study_plan, time_estimate

# In an empty cache, the images are drawn and prepared first.
STUDIES: dict[str, Choices] = {
    "the default study": Choices(),
    "one target, three layers, two seeds": Choices(targets=("B",), layers=(1, 4, 7), seeds=(0, 1), epochs=4),
    "ten images per class, bf16": Choices(split="random:0", per_class=10, precision="bf16", epochs=24),
    "bases of one task alone": Choices(targets=("A",), treatments=(), epochs=16),
    "the paper's network": Choices(
        data="drawn", split="random:0", recipe="fast", batch=32, steps=12, precision="bf16", layers=(1, 3, 6),
        treatments=("transfer", "transfer+"),
    ),
}  # fmt: skip
QUICK: dict[str, Choices] = {
    "the default study, one epoch": Choices(epochs=1),
    "the paper's network": STUDIES["the paper's network"],
    "one target, three layers, two seeds": replace(STUDIES["one target, three layers, two seeds"], epochs=1),
    "bases of one task alone": replace(STUDIES["bases of one task alone"], epochs=4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short studies, and no JSON")
    parser.add_argument("--only", default="", help="studies whose names contain this")
    chosen = parser.parse_args()
    studies = QUICK if chosen.quick else STUDIES
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FASTTRANSFER_CACHE"] = f"{scratch}/cache"
        for number, (name, choices) in enumerate(studies.items()):
            if chosen.only not in name:
                continue
            if choices.data == "drawn":
                choices = replace(choices, data=str(_drawn(Path(scratch) / "drawn")))
            found = compare(choices, Path(scratch) / str(number))
            results[name] = found
            seconds, memory, disk = (found["ratio"][what] for what in ("seconds", "memory", "disk"))
            print(f"{name}: {json.dumps(found)}", flush=True)
            print(f"{name}: predicted / taken: {seconds:.2f} seconds, {memory:.2f} memory, {disk:.2f} disk", flush=True)
            if not chosen.quick:
                write_result("forecast", "python -m bench.forecast", studies=results)


def _drawn(folder: Path) -> Path:
    """Draw a few images of the paper's size; each takes a tenth of a second."""
    if not folder.exists():
        synthetic.render(folder, train=6, val=2, size=256)
    return folder


def compare(choices: Choices, out: Path) -> dict[str, Any]:
    """Predict a study, then train it; return seconds, bytes of memory and of disk, and their ratios."""
    begun = time.monotonic()
    plan = study_plan.make_plan(choices)
    state = time_estimate.read_progress(plan, out)
    found = time_estimate.forecast(plan, state, study_plan.plan_study_jobs(plan, plan.cells()))
    took = time.monotonic() - begun
    before = _bytes(cache_folder())
    begun = time.monotonic()
    command = [sys.executable, "-m", "fasttransfer", *study_plan.command_words(choices), "--out", str(out)]
    with _Disk(out / "checkpoints") as checkpoints:
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peak = PeakMemory(run.pid)
        code = run.wait()
    if code != 0:
        sys.exit(code)
    seconds = time.monotonic() - begun
    disk = _bytes(out / "weights") + _bytes(cache_folder()) - before
    memory = peak.stop()
    predicted = sum(found.seconds.values())
    stays = sum(count for what, count in found.disk.items() if not what.startswith("checkpoints"))
    return {
        "command": " ".join(["fasttransfer", *study_plan.command_words(choices)]),
        "predicted": {
            "seconds": {part: round(each, 2) for part, each in found.seconds.items()},
            "memory": found.memory,
            "disk": dict(found.disk),
        },
        "predicting_took": round(took, 1),
        "taken": {"seconds": round(seconds, 1), "memory": memory, "disk": disk, "checkpoints": checkpoints.most},
        "ratio": {
            "seconds": round(predicted / seconds, 3),
            "memory": round(found.memory / memory, 3),
            "disk": round(stays / disk, 3),
        },
    }


class _Disk:
    """The most bytes in a folder, sampled ten times a second."""

    def __init__(self, folder: Path) -> None:
        self.most, self._folder, self._over = 0, folder, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Disk:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, _bytes(self._folder))


def _bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*") if folder.exists() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


if __name__ == "__main__":
    main()
