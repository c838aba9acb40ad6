"""Whether the operators and the step are still as much faster than PyTorch as when it was last recorded.

    python bench/check.py
    python bench/check.py --record 5

Ratios only, each between two things measured in turn in this run; absolute times say more of the machine's other work
than of this program. A ratio fails when it is smaller than the least that was recorded by more than the recorded runs
differ among themselves, and at least by a fifth, and is so again in two further tries: what is slower stays slower.
`--record` measures so many runs and writes bench/results/bench-check.json. On another kind of machine ratios are shown
without a verdict.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fasttransfer.bench import command, kernels, training
from fasttransfer.bench.readings import ratios, read, same_machine
from fasttransfer.bench.timing import compare
from fasttransfer.core import devices
from fasttransfer.core.errors import InputError
from fasttransfer.networks.geometry import CAFFENET_MINI

RECORDED = Path(__file__).parent / "results" / "bench-check.json"
TRIES, LEAST = 3, 0.2
STEP = "step of caffenet-mini, batch 32: eager fp32"
CPU = torch.device("cpu")

Call = Callable[[int], object]
Cases = Mapping[str, Callable[[], tuple[Call, Call]]]


def cases() -> dict[str, Callable[[], tuple[Call, Call]]]:
    """Name -> what makes the two calls, PyTorch's and ours; none is compiled, which takes longer than all the rest."""
    found: dict[str, Callable[[], tuple[Call, Call]]] = {}
    for case in kernels.cases():

        def calls(case: kernels.Case = case) -> tuple[Call, Call]:
            made = case.variants(CPU)
            return made["eager"], made["native"]

        found[f"{case.label}: eager"] = calls
    found[STEP] = lambda: (training.plain_step(CAFFENET_MINI, 32, CPU), training.fast(CAFFENET_MINI, 32, "fp32", CPU))
    return found


def measure(make: Callable[[], tuple[Call, Call]], rounds: int = 5) -> float:
    """How many times as long PyTorch takes: the median of `rounds` rounds."""
    theirs, ours = make()
    timings = compare({"theirs": theirs, "ours": ours}, CPU, rounds=rounds)
    samples = {name: {"samples": timing.samples} for name, timing in timings.items()}
    return statistics.median(ratios(samples["theirs"], samples["ours"]))


def floor(recorded: Mapping[str, Any]) -> float:
    """The ratio below which a case fails: the least recorded, less the recorded spread or a fifth."""
    spread = (recorded["most"] - recorded["least"]) / recorded["median"]
    return float(recorded["least"] * (1 - min(0.5, max(LEAST, spread))))


def record(runs: int, out: Path, made: Cases) -> None:
    """Measures every case `runs` times, all cases before any again, and writes `out`."""
    found: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(runs):
        for name, make in made.items():
            found[name].append(measure(make))
    taken = {
        name: {"median": statistics.median(r), "least": min(r), "most": max(r), "runs": [round(x, 3) for x in r]}
        for name, r in found.items()
    }
    command.write(out, command.described(f"python bench/check.py --record {runs}", "cpu") | {"ratios": taken})


def check(result: Mapping[str, Any], made: Cases, *, verdict: bool, log: Callable[[str], None] = print) -> list[str]:
    """Names of the cases that failed."""
    failed = []
    for name, recorded in result["ratios"].items():
        if name not in made:
            continue
        least, found = floor(recorded), 0.0
        for _ in range(TRIES):
            found = max(found, measure(made[name]))
            if found >= least or not verdict:
                break
        bad = verdict and found < least
        failed += [name] * bad
        log(f"{found:7.2f}x  recorded {recorded['median']:.2f}x, at least {least:.2f}x  {'SLOWER' * bad}  {name}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=int, metavar="RUNS", help="measure so many runs and write them")
    chosen = parser.parse_args()
    devices.keep_freed_memory()
    if chosen.record:
        record(chosen.record, RECORDED, cases())
        return 0
    try:
        result = read(RECORDED)
    except InputError as error:
        print(f"{error}: record some first, with --record 5", file=sys.stderr)
        return 2
    here = same_machine(result, command.described("", "cpu"))
    if not here:
        on = result["machine"]
        print(f"no verdict: recorded on {on['processor']}, {on['cores']} cores; see --record")
    failed = check(result, cases(), verdict=here)
    print(json.dumps({"failed": failed}) if failed else "no ratio is smaller than it was")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
