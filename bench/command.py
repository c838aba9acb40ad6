"""`fasttransfer bench`: measures, prints a table, writes JSON that says on what machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from fasttransfer.bench import ablation, data, grid, kernels, memory, parts, roofline, training
from fasttransfer.bench.parts import Size
from fasttransfer.bench.rows import Rows, ratio, time, times
from fasttransfer.bench.timing import compare, copying
from fasttransfer.core import devices, machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import make_folder, replace_file
from fasttransfer.networks.geometry import GEOMETRIES
from fasttransfer.ops.native import CPU_ONLY
from fasttransfer.study import environment
from fasttransfer.study.cells import LAYERS, base

QUICK, FULL = Size(3, 32, 64, 0, 0.1), Size(7, 128, 800, 22_000, 0.3)
GPU_BATCH = 256  # images: the paper's

DATA_STEPS = ("decode", "resize", "prepare", "feed", "memory")

Measure = Callable[[Size, str, torch.device, Console], Iterator[dict[str, Any]]]


def run(
    part: str,
    *,
    quick: bool,
    only: str,
    device: str,
    out: Path | None,
    console: Console,
    source: Path | None = None,
    epochs: float | None = None,
    classes: int | None = None,
) -> None:
    """Measures a part, see `measures`, on `device`; every result is on the disk as soon as it is known.

    Args:
        quick: fewer samples and a smaller batch: minutes become seconds, and numbers rough.
        only: cases whose names contain this.
        out: the JSON file; none is written without.
        source: the images for those that read some; the built-in ones without.
        epochs, classes: limits on the study of "grid".

    Raises:
        InputError: nothing has that name, or `out` cannot be written.
    """
    names = {
        "ceilings": ["ceilings"],
        "kernels": [case.label for case in kernels.cases()],
        "step": list(GEOMETRIES),
        "cells": ["cells"],
        "data": list(DATA_STEPS),
        "features": ["features"],
        "cached": [f"n = {n}" for n in LAYERS],
        "ablation": list(ablation.IDEAS),
        "grid": list(grid.PARTS),
    }[part]
    asked = grid.GridBenchmark(source, epochs, classes, device, quick)
    if not any(only in name for name in names):
        raise InputError(f"--only {only}: no case has that in its name: {', '.join(names)}")
    if device == "cpu":
        devices.keep_freed_memory()  # as a grid's workers do, for everything that is measured
    result = described(command_of(part, asked, only), device)
    if out is not None:
        make_folder(out.parent)
        write(out, result)  # refused now rather than when minutes have been measured
    for found in measures(asked)[part](sized(QUICK if quick else FULL, device), only, torch.device(device), console):
        result |= found
        if out is not None:
            write(out, result)
    if out is not None:
        console.print(Text(f"written: {out}"), soft_wrap=True)


def measures(
    asked: grid.GridBenchmark, studies: Sequence[str] = grid.PARTS, layers: Sequence[int] = LAYERS
) -> dict[str, Measure]:
    """What each part runs, in the order in which all are run.

    Args:
        studies: the parts of "grid"; layers: the cuts of "cached".
    """
    source = asked.source
    return {
        "ceilings": partial(parts.ceilings_of, source=source),
        "kernels": _kernels,
        "step": _step,
        "cells": parts.cells_of,
        "data": partial(_data, source=source),
        "features": parts.features_of,
        "cached": partial(parts.cached_of, layers=layers),
        "ablation": partial(parts.ablation_of, source=source),
        "grid": partial(_grid, asked=asked, parts=studies),
    }


def sized(size: Size, device: str) -> Size:
    """A GPU is not busy with the batches of a CPU."""
    return replace(size, batch=max(size.batch, GPU_BATCH)) if device == "cuda" else size


def command_of(part: str, asked: grid.GridBenchmark, only: str = "") -> str:
    """The command that measures this again."""
    return shlex.join(["fasttransfer", "bench", part, *asked.words, *(["--only", only] if only else [])])


def described(command: str, device: str) -> dict[str, Any]:
    """What stands at the head of a result: how, when and on what it was measured."""
    return {
        "command": command,
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": environment.describe_machine() | {"threads": str(torch.get_num_threads())},
        "device": device,
    }


def write(out: Path, result: Mapping[str, Any]) -> None:
    """The result so far, whole or not at all."""
    with replace_file(out) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())


def _kernels(size: Size, only: str, device: torch.device, console: Console) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {"cases": {}}
    rows = Rows(console, ("case", 66), ("native", 10), ("GB/s", 8), ("of a copy", 9), ("others take", 0))
    for case in kernels.cases():
        if only not in case.label or (device.type == "cuda" and case.operator in CPU_ONLY):
            continue
        calls = case.variants(device)
        timings = compare(calls | {"copy": copying(case.least_bytes, device)}, device, rounds=size.rounds)
        native = timings["native"].median
        share = timings["copy"].median / native
        others = [f"{ratio(timings[k].median, native)} {k}" for k in calls if k != "native"]
        rows.add(case.label, time(native), f"{case.least_bytes / native / 1e9:,.1f}", f"{share:.0%}", ", ".join(others))
        found["cases"][case.label] = {
            "least_bytes": case.least_bytes,
            "flops": case.flops,
            "of_copy": round(share, 4),
        } | times(timings)
        torch.compiler.reset()
        yield found


def _step(size: Size, only: str, device: torch.device, console: Console) -> Iterator[dict[str, Any]]:
    for geometry in GEOMETRIES.values():
        if only not in geometry.name:
            continue
        batch = size.batch if geometry.name == "caffenet" else 32
        calls = training.variants(geometry, batch, device)
        timings = compare(calls, device, rounds=size.rounds, sample=0.1)
        ours = timings["fasttransfer bf16"].median
        console.print(Text(f"{geometry.name}, batch {batch}, {training.OUTPUTS} classes, forward, backward and update"))
        rows = Rows(console, ("variant", 34), ("a step", 10), ("images/s", 11), ("takes, against bf16", 0))
        for name, timing in timings.items():
            against = "" if name == "fasttransfer bf16" else ratio(timing.median, ours)
            rows.add(name, time(timing.median), f"{batch / timing.median:,.0f}", against)
        spent = training.profile(calls["fasttransfer bf16"], device)[:15]
        rows = Rows(console, ("where the bf16 step's time goes", 54), ("a step", 10), ("calls", 6))
        for operator, milliseconds, count in spent:
            rows.add(operator, f"{milliseconds:,.2f} ms", str(count))
        yield {
            geometry.name: {
                "batch": batch,
                "work": {
                    name: asdict(roofline.trained(geometry, training.OUTPUTS, base("A", 0), batch, item))
                    for name, item in (("bf16", 2), ("fp32", 4))
                },
            }
            | times(timings)
            | {"profile": [{"operator": o, "ms": round(ms, 3), "calls": n} for o, ms, n in spent]}
        }
        torch.compiler.reset()


def _data(
    size: Size, only: str, device: torch.device, console: Console, *, source: Path | None
) -> Iterator[dict[str, Any]]:
    with data.scratch_folder() as folder:
        work = data.gather(source, folder / "images", size.images)
        facts = {"source": source.name if source else "built-in", **work.facts}
        console.print(Text(", ".join(f"{name} {fact}" for name, fact in facts.items())))
        yield {"images": facts}
        cores = list(dict.fromkeys((1, machine.cores())))
        for step in DATA_STEPS[:-1]:
            if only in step:
                found: dict[str, Any] = {}
                for count in cores:
                    found[f"{count} core{'s' if count > 1 else ''}"] = _images(
                        step, size, work, folder, count, device, console
                    )
                    yield {step: found}
        if only in DATA_STEPS[-1] and size.many:
            data.lay_out(source, folder / "many", size.many)
            data.lay_out(source, folder / "few", data.BATCH)
            taken = memory.measure(folder)
            rows = Rows(console, ("memory above the libraries", 34), ("prepare", 10), ("feed", 10), ("store", 10))
            for kind, most in taken.items():
                rows.add(kind, *(f"{most[name] / 2**20:,.0f} MiB" for name in ("prepare", "feed", "store")))
            yield {"memory": {"images": size.many, "bytes": taken}}


def _images(
    step: str, size: Size, work: data.DataCase, folder: Path, cores: int, device: torch.device, console: Console
) -> dict[str, Any]:
    """One step on the images' way, on so many cores."""
    some, lead, sample = work.blobs[: 2 * size.batch], 0, size.sample
    made = data.stores(work, folder) if step == "feed" else {}
    with data.on_cores(cores):
        if step == "decode":
            count, calls = len(some), data.decoders(some, cores, device)
        elif step == "resize":
            count, calls = len(some), data.resizers(some, cores, device)
        elif step == "prepare":
            count, calls, sample = len(work.blobs), data.preparations(work, folder, cores, device), 0.0
        else:
            count, calls = data.BATCH, data.feeds(made["raw"], made["jpeg"], folder, cores, device)
            lead = 4 * cores  # more than any of them makes ahead
        timings = compare(calls, device, rounds=size.rounds, sample=sample, lead=lead)
    rates = {name: count / timing.median for name, timing in timings.items()}
    found = {"images a call": count, "images per second": {name: round(rate, 1) for name, rate in rates.items()}}
    if step == "prepare":
        other = max((name for name in rates if name.startswith("decode only")), key=rates.__getitem__)
    else:
        other = "DataLoader + Pillow" if step == "feed" else "Pillow"
    found["against"] = {"what": other} | {name: round(rate / rates[other], 3) for name, rate in rates.items()}
    if step == "feed":
        found["of_copy"] = round(rates["fasttransfer raw"] / rates["copy"], 4)
    rows = Rows(
        console, (f"{step}, {cores} core{'s' if cores > 1 else ''}", 34), ("images/s", 11), (f"against {other}", 32)
    )
    for name, rate in rates.items():
        rows.add(name, f"{rate:,.0f}", f"{rate / rates[other]:.2f}x")
    return found | times(timings)


def _grid(
    size: Size, only: str, device: torch.device, console: Console, *, asked: grid.GridBenchmark, parts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    rows: Rows | None = None
    with data.scratch_folder() as folder:
        for found in grid.measure(asked, [part for part in parts if only in part], folder, console):
            yield found
            if "study" in found:
                study = found["study"]
                tasks = (f"{t}: {study['classes'][t]} classes, {study['train_pictures'][t]} images" for t in "AB")
                console.print(
                    Text(f"{study['networks']} networks of {study['images']} ({'; '.join(tasks)})"), soft_wrap=True
                )
                rows = Rows(console, ("way", 8), ("seconds", 9), ("images/s", 11), ("memory", 10), ("of the limit", 0))
            for way in found.keys() & {"cohort", "plain"}:
                assert rows is not None
                it = found[way]
                shares = ", ".join(f"{share:.0%} of {name}" for name, share in it["of_limit"].items())
                held = f"{it['peak_memory_bytes'] / 2**20:,.0f} MiB"
                rows.add(way, f"{it['wall_seconds']:,.1f}", f"{it['images_per_second']:,.0f}", held, shares)
            if "agreement" in found:
                agreed = found["agreement"]
                ways, seeds = agreed["plain - cohort"], agreed["other seed - cohort"]
                lines = (
                    f"plain takes {found['plain_over_cohort']:.2f}x as long",
                    f"its top-1 less the cohort's: {ways['mean']:+.2%}, spread {ways['spread']:.2%}",
                    f"the cohort's under another seed: {seeds['mean']:+.2%}, spread {seeds['spread']:.2%}",
                    f"{'within' if agreed['agree'] else 'NOT within'} the noise of {2.5 * agreed['noise_of_mean']:.2%}",
                )
                console.print(Text("; ".join(lines)), soft_wrap=True)
