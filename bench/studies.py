"""Whole studies, timed: the source of the README's tables and of the default study's time.

    python -m bench.studies builtin
    python -m bench.studies tiny-natural-manmade --data tiny-imagenet-200

Each runs `fasttransfer grid` as a user would, in a process of its own and an empty cache, and writes
bench/results/study-<name>.json: command, machine, wall seconds, peak memory, the verdict on the bases, and the tables
of the report with every network's top-1 behind them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fasttransfer.bench.grid import PeakMemory
from fasttransfer.core.files import replace_file
from fasttransfer.core.intervals import Estimate
from fasttransfer.report.analysis.effects import BOOST, FREEZING, SPECIFICITY
from fasttransfer.report.analysis.summary import summarise
from fasttransfer.report.verdict import verdict
from fasttransfer.study import environment, records

RESULTS = Path(__file__).parent / "results"

# Few classes and few cuts: what networks learn to the end on two cores within the hour.
_TINY = ["--classes", "10", "--seeds", "0", "1", "2"]
_WHOLE = [*_TINY, "--epochs", "40", "--layers", "1", "4", "7"]
# Only what dropout might change, the cost of freezing: at a cut between two convolutions and at one between the two
# layers that dropout acts on. Longer than the others, for dropout slows learning.
_DROPOUT = [*_TINY, "--split", "natural-manmade", "--epochs", "60", "--layers", "4", "6"]
_DROPOUT += ["--treatments", "selffer", "selffer+"]
# The paper's five curves for a residual network, at the ends of its four groups of blocks. Of two views per image
# networks learn all there is within these epochs, while with any crops base+ still gained 2.7 points after 45 epochs.
_RESNET = [*_TINY, "--split", "natural-manmade", "--network", "torchvision:resnet18", "--size", "32"]
_RESNET += ["--cuts", "layer1", "layer2", "layer3", "layer4", "--recipe", "small-adamw", "--lr", "0.001"]
_RESNET_VIEWS = [*_RESNET, "--views", "2", "--epochs", "40", "--precision", "bf16"]
_RESNET_VIEWS += ["--treatments", "selffer", "selffer+", "transfer", "transfer+"]
_BASES = ["--treatments", "--seeds", *map(str, range(16))]  # no treatment after the option: bases only
STUDIES = {
    "builtin": ["--split", "natural-manmade"],
    "builtin-all-cuts": ["--split", "natural-manmade", "--layers", *"1234567"],
    "builtin-bases-fp32": [*_BASES, "--precision", "fp32"],
    "builtin-bases-bf16": [*_BASES, "--precision", "bf16"],
    "tiny-natural-manmade": ["--split", "natural-manmade", *_WHOLE],
    "tiny-random-0": ["--split", "random:0", *_WHOLE],
    "tiny-resnet18": _RESNET_VIEWS,
    "tiny-resnet18-crops": [*_RESNET, "--epochs", "45", "--treatments"],  # bases only
    "tiny-dropout-0": [*_DROPOUT, "--dropout", "0"],
    "tiny-dropout-0.5": [*_DROPOUT, "--dropout", "0.5"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", help="images, unless the name begins with builtin")
    parser.add_argument("--out", type=Path, help="where to keep the study; by default it is deleted")
    chosen = parser.parse_args()
    command = ["grid", *STUDIES[chosen.study]]
    if chosen.data:
        command += ["--data", chosen.data]
    with tempfile.TemporaryDirectory() as scratch:
        out = chosen.out or Path(scratch) / "run"
        variables = os.environ | {"FASTTRANSFER_CACHE": f"{scratch}/cache"}
        start = time.monotonic()
        grid = subprocess.Popen([sys.executable, "-m", "fasttransfer", *command, "--out", str(out)], env=variables)
        peak = PeakMemory(grid.pid)
        if grid.wait() != 0:
            sys.exit(grid.returncode)
        seconds = time.monotonic() - start
        write_result(
            f"study-{chosen.study}",
            " ".join(["fasttransfer", "grid", *STUDIES[chosen.study]]),
            wall_seconds=round(seconds, 1),
            peak_memory_bytes=peak.stop(),
            table=table(records.read_results(out)),
        )


def write_result(name: str, command: str, **found: Any) -> None:
    """Write bench/results/`name`.json: the command, the machine, and what was found."""
    path = RESULTS / f"{name}.json"
    result = {"command": command, "machine": environment.describe_machine(), **found}
    with replace_file(path) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())
    print(f"written: {path}", flush=True)


def table(recorded: records.StudyResults) -> dict[str, Any]:
    """The verdict, and at the last check top-1 of each network and the means over targets and seeds of each n.

    A difference is [points, half the width of its 95 % interval or None], both in [-1, 1].
    """
    summary = summarise(recorded.results, facts=recorded.facts)
    told = verdict(recorded)
    return {
        "verdict": told.text if told else None,
        "finished": told.finished if told else None,
        "gain": pair(summary.gain),
        "intervals": summary.noise_kind,
        "n": {
            row.n: {
                "top1": {treatment: round(mean.value, 4) for treatment, mean in row.top1.items()},
                "minus base": {treatment: pair(mean) for treatment, mean in row.difference.items()},
                "freezing": pair(row[FREEZING]),
                "specificity": pair(row[SPECIFICITY]),
                "boost": pair(row[BOOST]),
            }
            for row in summary.rows
        },
        "networks": _networks(recorded.results),
    }


def pair(estimate: Estimate | None) -> list[float | None] | None:
    """[value, half the width of the 95 % interval]."""
    if estimate is None:
        return None
    return [round(estimate.value, 4), None if estimate.half is None else round(estimate.half, 4)]


def _networks(results: Iterable[records.Result]) -> Mapping[str, list[float | None]]:
    """Name -> top-1 per seed, in the order of the seeds."""
    found: dict[str, list[float | None]] = {}
    for result in sorted(results, key=lambda result: (result.treatment, result.n, result.target, result.seed)):
        found.setdefault(result.name, []).append(None if result.last_top1 is None else round(result.last_top1, 4))
    return found


if __name__ == "__main__":
    main()
