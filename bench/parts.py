"""What `fasttransfer bench` measures beside kernels, steps and images: ceilings, cells, features, ideas.

Each part yields what it has found as soon as it is known, in the form in which it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from fasttransfer.bench import ablation, cached, ceilings, cells, data, features, kernels, roofline, training
from fasttransfer.bench.rows import Rows, ratio, time, times
from fasttransfer.bench.timing import compare
from fasttransfer.core import machine
from fasttransfer.networks.geometry import CAFFENET
from fasttransfer.study.cells import Cell, base
from fasttransfer.study.paper import IMAGES_PER_SECOND

Found = Iterator[dict[str, Any]]
LARGER = (512, 1024, 2048)  # images per step, to see what a GPU gains from more than the paper's 256
CACHED_BATCH, CACHED_CLASSES = 256, 1000  # the paper's
UNITS = {"bytes": (1e9, "GB/s"), "FLOP": (1e9, "GFLOP/s"), "images": (1.0, "images/s")}


@dataclass(frozen=True)
class Size:
    """How long is measured.

    Attributes:
        rounds: samples of each variant.
        batch: images a training step, and half of those that are decoded at a time.
        images: how many are prepared; many: how many where memory is measured, 0 for not at all.
        sample: seconds of a sample of decoding or feeding, at least.
    """

    rounds: int
    batch: int
    images: int
    many: int
    sample: float


def ceilings_of(size: Size, only: str, device: torch.device, console: Console, *, source: Path | None) -> Found:
    """What the machine can do at the most."""
    with data.scratch_folder() as folder:
        blobs = data.gather(source, folder / "images", min(size.images, 2 * size.batch)).blobs
        made = ceilings.ceilings(device, blobs, machine.cores())
        timings = ceilings.measure(made, device, size.rounds)
    rates = {name: round(made[name].work / timing.median) for name, timing in timings.items()}
    rows = Rows(console, ("ceiling", 34), ("a second", 20))
    for name, rate in rates.items():
        scale, unit = UNITS[made[name].unit]
        rows.add(name, f"{rate / scale:,.1f} {unit}")
    units = {name: ceiling.unit for name, ceiling in made.items()}
    yield {"a second": rates, "unit": units} | times(timings)


def cells_of(size: Size, only: str, device: torch.device, console: Console) -> Found:
    """A training step from each cut, and the frozen stages before it."""
    timings = compare(cells.calls(size.batch, "bf16", device, CAFFENET), device, rounds=size.rounds, sample=0.1)
    rates = {name: size.batch / timing.median for name, timing in timings.items()}
    rows = Rows(console, ("layers frozen", 14), ("a cell alone", 13), ("its prefix", 11), ("K20, 2014", 10))
    for n, then in enumerate(IMAGES_PER_SECOND):
        forward = rates[cells.FORWARD.format(n)] if n else float("inf")
        alone = 1 / (1 / rates[cells.TRAIN.format(n)] + 1 / forward)
        rows.add(str(n), f"{alone:,.0f}", f"{forward:,.0f}" if n else "", str(then))
    least = {}
    for n in range(8):
        cell = Cell(0, "B", "transfer", n) if n else base("B", 0)
        least[cells.TRAIN.format(n)] = asdict(roofline.trained(CAFFENET, training.OUTPUTS, cell, size.batch, 2))
        forward_work = roofline.forward(CAFFENET, training.OUTPUTS, size.batch, 2, stop=n + 1)
        least[cells.FORWARD.format(n + 1)] = asdict(forward_work)
    found = {
        "batch": size.batch,
        "outputs": training.OUTPUTS,
        "images per second": {name: round(rate, 1) for name, rate in rates.items()},
        "work": least,
    }
    yield found | times(timings)
    if device.type == "cuda":  # a CPU's memory is seldom enough, and the rates above are all that is needed
        count, call = cells.whole_cohort(size.batch, "bf16", device, CAFFENET)
        timing = compare({"step": call}, device, rounds=size.rounds, sample=0.1)["step"]
        console.print(Text(f"{count} cells on one stream: {size.batch / timing.median:,.0f} images per second each"))
        yield {"cohort": {"cells": count} | times({"step": timing})}
        larger = {}
        for batch in LARGER:
            step = training.fast(CAFFENET, batch, "bf16", device)
            timing = compare({"step": step}, device, rounds=size.rounds, sample=0.1)["step"]
            console.print(Text(f"a step of {batch} images: {batch / timing.median:,.0f} images per second"))
            larger[str(batch)] = times({"step": timing})
            yield {"larger": larger}


def features_of(size: Size, only: str, device: torch.device, console: Console) -> Found:
    """Packing and unpacking on one core, of as many zeros as the paper's cut 5 has."""
    times_more = 32 if device.type == "cuda" else 1  # a GPU's caches hold more, and its launches take longer
    x = torch.randn(times_more * features.RECORDS, features.ELEMENTS, device=device).bfloat16()
    x = x.masked_fill_(torch.rand(x.shape, device=device) >= kernels.KEPT, 0.0)
    with data.on_cores(1):
        sizes, timings = features.timed(x, size.rounds, records=times_more * features.BLOCK)
    dense = times_more * features.BLOCK * features.ELEMENTS * 2
    rows = Rows(console, ("features, one core", 20), ("dense GB/s", 11), ("of a copy", 0))
    found: dict[str, Any] = {
        "not_zero": kernels.KEPT,
        "of_dense": round(sizes["packed"] / (x.numel() * 2), 4),
        "dense_bytes": dense,
    }
    for way, of_way in timings.items():
        copied, taken = of_way["copy"].median, of_way["packed"].median
        rows.add(way, f"{dense / taken / 1e9:.1f}", f"{copied / taken:.0%}")
        found[way] = {"of_copy": round(copied / taken, 4)} | times(of_way)
    yield found


def cached_of(size: Size, only: str, device: torch.device, console: Console, *, layers: Sequence[int]) -> Found:
    """A step of a cell frozen up to each of `layers`, from the cache of features and live, and what filling takes."""
    batch = min(2 * size.batch, CACHED_BATCH)
    classes = min(4 * batch, CACHED_CLASSES)
    with data.scratch_folder() as folder, cached.own_cache(folder / "cache"):
        setting = cached.open_study(folder, batch, classes, device.type)
        study = setting.study
        with cached.settled(setting) as settled:
            found = cached.filling(setting, settled)
            took, least = found["fill_seconds"], found["forward_seconds"]
            console.print(
                Text(f"filling all cuts with {found['records']} images: {took:.1f} s, a forward pass {least:.1f} s")
            )
            outputs = study.recipe.outputs_for("B", setting.classes)
            facts = {"precision": study.precision, "threads": study.threads, "batch": batch, "outputs": outputs}
            yield {"study": facts, "filling": found}
            rows = Rows(console, ("layers frozen", 14), ("live", 10), ("cached", 10), ("images per second", 0))
            steps: dict[str, Any] = {}
            for n in layers:
                if only not in f"n = {n}":
                    continue
                timings = cached.steps(setting, n, settled, size.rounds)
                live, ours = (batch / timings[name].median for name in ("live", "cached"))
                rows.add(str(n), f"{live:,.0f}", f"{ours:,.0f}", f"{ours / live:.1f}x")
                steps[str(n)] = {"live": round(live, 1), "cached": round(ours, 1), "ratio": round(ours / live, 2)}
                steps[str(n)] |= times(timings)
                yield {"n": steps}


def ablation_of(size: Size, only: str, device: torch.device, console: Console, *, source: Path | None) -> Found:
    """What the step takes without each idea."""
    batch = size.batch // 2  # float32 and planes take twice the memory
    with data.scratch_folder() as folder:
        blobs = data.gather(source, folder / "images", min(size.images, batch)).blobs
        for group, ideas in ablation.IDEAS.items():
            if only not in group:
                continue
            calls = ablation.variants(group, batch, device, blobs, machine.cores(), CAFFENET)
            timings = compare(calls, device, rounds=size.rounds, sample=0.1)
            whole = timings[ablation.WHOLE].median
            rows = Rows(console, (f"{group}, batch {batch}: without", 34), ("a step", 10), ("takes", 7), ("instead", 0))
            rows.add(f"({ablation.WHOLE})", time(whole), "", "")
            for idea in ideas:
                if idea.name in timings:
                    without = timings[idea.name].median
                    rows.add(idea.name, time(without), ratio(without, whole), idea.instead)
                else:
                    rows.add(idea.name, "", "", "only a GPU uses it")
            if ablation.COMPILED in timings:
                compiled = timings[ablation.COMPILED].median
                rows.add(f"({ablation.COMPILED})", time(compiled), ratio(compiled, whole), "")
            yield {group: {"batch": batch} | times(timings)}
            torch.compiler.reset()
        console.print(Text(f"on {device.type}, in bf16 but where it says fp32"))
