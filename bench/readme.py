"""Write the table of the README's section about speed from the committed results.

    python -m bench.readme

A test fails where the README and the results differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import projection
from bench.studies import RESULTS
from fasttransfer.bench.harness import ratio, read
from fasttransfer.bench.step import PRODUCTS
from fasttransfer.core.files import replace_file

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- written by python -m bench.readme -->\n", "<!-- end -->\n"
MACHINES = {
    "avx512": "2 cores, AVX-512 with bf16",
    "amx": "2 cores, AVX-512 with AMX",
    "avx2": "2 cores, AVX2",
    "h200": "H200",
}
BENCH = "make bench BENCHES=bench/test_{}.py"
POOLING = "operators[relu_pool_lrn 64x96x55x55 bfloat16 forward + backward]"
SPARSE = "operators[sparse_conv_backward stage 2, batch 64, 41% not 0 {} backward]"
LOADERS = (("as usual",), ("+ draft", "+ v2 resize"), ("+ Pillow", "+ torchvision"), ("+ arrays",))
"""Variants of `bench feed` by what they start from; the README has the fastest of each."""

Results = Mapping[str, Mapping[str, Any]]
"""Name of a benchmark -> its entry, of one machine."""


@dataclass(frozen=True)
class Row:
    """A row of the table; `value` is None where a machine has not been measured."""

    what: str
    against: str
    command: str
    value: Callable[[Results], str | None]


def load(machine: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Return the entries of all results of a machine by name, later files before earlier ones."""
    found: dict[str, Any] = {}
    for name in ("speed", "grid"):
        path = folder / f"{name}-{machine}.json"
        if path.exists():
            found |= read(path)["benchmarks"]
    return found


def _seconds(results: Results, name: str) -> dict[str, list[float]] | None:
    return results[name]["extra_info"]["seconds"] if name in results else None


def _rate(results: Results, name: str, variant: str) -> float:
    info = results[name]["extra_info"]
    return float(info["work"][0] / median(info["seconds"][variant]))


def _step(results: Results) -> str | None:
    seconds = _seconds(results, "step[caffenet]")
    if seconds is None:
        return None
    theirs = [name for name in seconds if "fasttransfer" not in name and name != PRODUCTS]
    best = min(ratio(seconds, name) for name in theirs)
    rate = _rate(results, "step[caffenet]", next(iter(seconds)))
    return f"{rate:,.0f} images/s: {ratio(seconds, 'eager fp32'):.2f}x / {best:.2f}x"


def _products(results: Results) -> str | None:
    seconds = _seconds(results, "step[caffenet]")
    return None if seconds is None else f"{ratio(seconds, PRODUCTS):.2f}x"


def _pooling(results: Results) -> str | None:
    seconds = _seconds(results, POOLING)
    if seconds is None:
        return None
    against = ("eager", "compiled", "copy")
    return " / ".join(f"{ratio(seconds, name):.2g}x" if name in seconds else "–" for name in against)


def _sparse(results: Results) -> str | None:
    for dtype in ("bfloat16", "float32"):
        seconds = _seconds(results, SPARSE.format(dtype))
        if seconds is not None and (dtype == "float32" or ratio(seconds, "eager") > 1):  # networks use it there alone
            return f"{ratio(seconds, 'eager'):.1f}x ({'bf16' if dtype == 'bfloat16' else 'fp32'})"
    return None


def _feed(results: Results, *, all_cores: bool) -> str | None:
    names = [name for name in results if name.startswith("feed[feed-")]
    if not names:
        return None
    name = names[-1 if all_cores else 0]
    seconds = results[name]["extra_info"]["seconds"]
    fastest = (
        min((ratio(seconds, f"DataLoader {way}") for way in ways if f"DataLoader {way}" in seconds), default=None)
        for ways in LOADERS
    )
    ratios = " / ".join("–" if each is None else f"{each:.1f}x" for each in fastest)
    return f"{_rate(results, name, 'fasttransfer raw'):,.0f} images/s: {ratios}"


def _prepare(results: Results) -> str | None:
    names = [name for name in results if name.startswith("feed[prepare-")]
    if not names:
        return None
    seconds = results[names[-1]]["extra_info"]["seconds"]
    best = max(ratio(seconds, name) for name in seconds if name.startswith("decode only"))
    return f"{_rate(results, names[-1], 'prepare raw'):,.0f} images/s: {best:.2f}x"


def _cohort(results: Results) -> str | None:
    seconds = _seconds(results, "frozen_cells[caffe]")
    if seconds is None:
        return None
    allowed = results["frozen_cells[caffe]"]["extra_info"]["arithmetic_allows"]
    return f"{ratio(seconds, 'seven cohorts'):.2f}x (arithmetic allows {allowed:.2f}x)"


def _cached(results: Results) -> str | None:
    found = [_seconds(results, f"cached_cell[caffe-{n}]") for n in (5, 7)]
    return " / ".join(f"{ratio(seconds, 'live'):.1f}x" for seconds in found if seconds is not None) or None


def _grid(results: Results) -> str | None:
    seconds = _seconds(results, "grid")
    if seconds is None or "plain PyTorch" not in seconds:
        return None
    study = results["grid"]["extra_info"]["study"]
    steps = max(study["steps"].values())
    return f"{ratio(seconds, 'plain PyTorch'):.1f}x ({study['networks']} networks of {steps} steps)"


def _projected(results: Results) -> str | None:
    seconds = _seconds(results, "cells")
    if seconds is None:
        return None
    feeds = [name for name in results if name.startswith("feed[feed-")]
    feed = 1 / _rate(results, feeds[-1], "fasttransfer raw") if feeds else 0.0
    together, alone = projection.project(seconds, results["cells"]["extra_info"]["work"][0], feed)
    return f"{_time(together)}, one by one {_time(alone)}"


def _time(seconds: float) -> str:
    return f"{seconds / 86400:,.0f} days" if seconds > 10 * 86400 else f"{seconds / 3600:,.0f} hours"


ROWS = (
    Row("CaffeNet training step, 500 classes", "eager fp32 / fastest PyTorch", "fasttransfer bench step", _step),
    Row("the same", "its convolutions and products alone", "fasttransfer bench step", _products),
    Row("`relu_pool_lrn`, forward + backward, 64x96x55x55 bf16", "eager / compiled / a copy",
        "fasttransfer bench operators", _pooling),
    Row("`sparse_conv_backward`, stage 2", "eager", "fasttransfer bench operators", _sparse),
    Row(
        "batches from a raw store, one core",
        "DataLoader as usual / the fastest on the same files / on JPEGs of side 256 / on decoded images",
        "fasttransfer bench feed",
        partial(_feed, all_cores=False),
    ),
    Row("the same, all cores", "the same", "fasttransfer bench feed", partial(_feed, all_cores=True)),
    Row("preparing a raw store", "decoding alone, the fastest library", "fasttransfer bench feed", _prepare),
    Row("a cohort of 7 frozen cells", "the same 7 one after another", BENCH.format("cohorts"), _cohort),
    Row("a frozen cell from the cache, n = 5 / 7", "the same cell live", BENCH.format("cohorts"), _cached),
    Row("a study of the built-in images", "the same in plain PyTorch", "fasttransfer bench grid", _grid),
    Row("all 163 networks of the paper, projected", f"{projection.K20_DAYS:,} K20-days", BENCH.format("cells"),
        _projected),
)  # fmt: skip


def table(machines: Mapping[str, Results]) -> str:
    """Return the table in Markdown: times as long as ours that the other takes, on each machine."""
    names = [name for name, results in machines.items() if results]
    lines = ["| | compared with | " + " | ".join(MACHINES[name] for name in names) + " | command |"]
    lines.append("|---" * (3 + len(names)) + "|")
    for row in ROWS:
        cells = [row.value(machines[name]) or "–" for name in names]
        lines.append(f"| {row.what} | {row.against} | " + " | ".join(cells) + f" | `{row.command}` |")
    packed = json.loads((RESULTS / "features.json").read_text())["cuts"]["5"]
    speed = f"{packed['of_dense']['shard']:.0%}, unpacked at {packed['unpack_gb_s']['packed']:.1f} GB/s per core"
    others = ["–"] * (len(names) - 1)
    cells = [speed if name == "avx512" else others.pop() for name in names]
    lines.append(f"| packed features at cut 5 | dense bf16 | {' | '.join(cells)} | `python -m bench.features RUN` |")
    return "\n".join(lines) + "\n"


def updated(text: str, written: str) -> str:
    """Return the README with `written` as its table."""
    head, rest = text.split(BEGIN, 1)
    return head + BEGIN + written + END + rest.split(END, 1)[1]


def main() -> None:
    text = updated(README.read_text(), table({name: load(name) for name in MACHINES}))
    with replace_file(README) as file:
        file.write(text.encode())
    print(f"written: {README}")


if __name__ == "__main__":
    main()
