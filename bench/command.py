"""`fasttransfer bench`: measures, prints a table, writes JSON that says on what machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from fasttransfer import info, machine
from fasttransfer.bench import data, kernels, memory, training
from fasttransfer.bench.timing import Timing, compare, copying
from fasttransfer.errors import InputError
from fasttransfer.files import make_folder, replace_file
from fasttransfer.geometry import GEOMETRIES
from fasttransfer.native import CPU_ONLY


@dataclass(frozen=True)
class Size:
    """How long is measured.

    Attributes:
        rounds: samples of each variant.
        batch: pictures a training step, and half of those that are decoded at a time.
        pictures: how many are prepared; many: how many where memory is measured, 0 for not at all.
        sample: seconds of a sample of decoding or feeding, at least.
    """

    rounds: int
    batch: int
    pictures: int
    many: int
    sample: float


QUICK, FULL = Size(3, 32, 64, 0, 0.1), Size(7, 128, 800, 22_000, 0.3)

DATA_STEPS = ("decode", "resize", "prepare", "feed", "memory")


def run(
    part: str, *, quick: bool, only: str, device: str, out: Path | None, console: Console, source: Path | None = None
) -> None:
    """Measures `part` ("kernels", "step" or "data") on `device`; every result is on the disk as soon as it is known.

    Args:
        quick: fewer samples and a smaller batch: minutes become seconds, and numbers rough.
        only: cases whose names contain this.
        out: the JSON file; none is written without.
        source: the pictures for "data"; the built-in ones without.

    Raises:
        InputError: nothing has that name, or `out` cannot be written.
    """
    names = {
        "kernels": [case.label for case in kernels.cases()],
        "step": list(GEOMETRIES),
        "data": list(DATA_STEPS),
    }[part]
    if source is not None and part != "data":
        raise InputError(f"--data {source}: bench {part} reads no pictures: leave it out")
    if not any(only in name for name in names):
        raise InputError(f"--only {only}: no case has that in its name: {', '.join(names)}")
    if device == "cpu":
        machine.keep_freed_memory()  # as a grid's workers do, for everything that is measured
    size = QUICK if quick else FULL
    measures: dict[str, Callable[[Size, str, torch.device, Console], Iterator[dict[str, Any]]]] = {
        "kernels": _kernels,
        "step": _step,
        "data": partial(_data, source=source),
    }
    choices = [f"--data {source.name}"] if source else []
    choices += ["--quick"] * quick + ([f"--only {only}"] if only else [])
    result: dict[str, Any] = {
        "command": " ".join(["fasttransfer bench", part, *choices]),
        "machine": info.measured_on() | {"threads": str(torch.get_num_threads())},
        "device": device,
    }
    if out is not None:
        make_folder(out.parent)
        _write(out, result)  # refused now rather than when minutes have been measured
    for found in measures[part](size, only, torch.device(device), console):
        result |= found
        if out is not None:
            _write(out, result)
    if out is not None:
        console.print(Text(f"written: {out}"), soft_wrap=True)


def _write(out: Path, result: Mapping[str, Any]) -> None:
    with replace_file(out) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())


def _kernels(size: Size, only: str, device: torch.device, console: Console) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {"cases": {}}
    rows = _Rows(console, ("case", 66), ("native", 10), ("GB/s", 8), ("of a copy", 9), ("others take", 0))
    for case in kernels.cases():
        if only not in case.label or (device.type == "cuda" and case.operator in CPU_ONLY):
            continue
        calls = case.variants(device)
        timings = compare(calls | {"copy": copying(case.least_bytes, device)}, device, rounds=size.rounds)
        native = timings["native"].median
        share = timings["copy"].median / native
        others = [f"{_ratio(timings[k].median, native)} {k}" for k in calls if k != "native"]
        rows.add(
            case.label, _time(native), f"{case.least_bytes / native / 1e9:,.1f}", f"{share:.0%}", ", ".join(others)
        )
        found["cases"][case.label] = {"least_bytes": case.least_bytes, "of_copy": round(share, 4)} | _times(timings)
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
        rows = _Rows(console, ("variant", 34), ("a step", 10), ("pictures/s", 11), ("takes, against bf16", 0))
        for name, timing in timings.items():
            against = "" if name == "fasttransfer bf16" else _ratio(timing.median, ours)
            rows.add(name, _time(timing.median), f"{batch / timing.median:,.0f}", against)
        spent = training.profile(calls["fasttransfer bf16"], device)[:15]
        rows = _Rows(console, ("where the bf16 step's time goes", 54), ("a step", 10), ("calls", 6))
        for operator, milliseconds, count in spent:
            rows.add(operator, f"{milliseconds:,.2f} ms", str(count))
        yield {
            geometry.name: {"batch": batch}
            | _times(timings)
            | {"profile": [{"operator": o, "ms": round(ms, 3), "calls": n} for o, ms, n in spent]}
        }
        torch.compiler.reset()


def _data(
    size: Size, only: str, device: torch.device, console: Console, *, source: Path | None
) -> Iterator[dict[str, Any]]:
    with data.scratch_folder() as folder:
        work = data.gather(source, folder / "pictures", size.pictures)
        facts = {"source": source.name if source else "built-in", **work.facts}
        console.print(Text(", ".join(f"{name} {fact}" for name, fact in facts.items())))
        yield {"pictures": facts}
        cores = list(dict.fromkeys((1, info.cores())))
        for step in DATA_STEPS[:-1]:
            if only in step:
                found: dict[str, Any] = {}
                for count in cores:
                    found[f"{count} core{'s' if count > 1 else ''}"] = _pictures(
                        step, size, work, folder, count, device, console
                    )
                    yield {step: found}
        if only in DATA_STEPS[-1] and size.many:
            data.lay_out(source, folder / "many", size.many)
            data.lay_out(source, folder / "few", data.BATCH)
            taken = memory.measure(folder)
            rows = _Rows(console, ("memory above the libraries", 34), ("prepare", 10), ("feed", 10), ("store", 10))
            for kind, most in taken.items():
                rows.add(kind, *(f"{most[name] / 2**20:,.0f} MiB" for name in ("prepare", "feed", "store")))
            yield {"memory": {"pictures": size.many, "bytes": taken}}


def _pictures(
    step: str, size: Size, work: data.Work, folder: Path, cores: int, device: torch.device, console: Console
) -> dict[str, Any]:
    """One step on the pictures' way, on so many cores."""
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
    found = {"pictures a call": count, "pictures a second": {name: round(rate, 1) for name, rate in rates.items()}}
    if step == "prepare":
        other = max((name for name in rates if name.startswith("decode only")), key=rates.__getitem__)
    else:
        other = "DataLoader + Pillow" if step == "feed" else "Pillow"
    found["against"] = {"what": other} | {name: round(rate / rates[other], 3) for name, rate in rates.items()}
    if step == "feed":
        found["of_copy"] = round(rates["fasttransfer raw"] / rates["copy"], 4)
    rows = _Rows(
        console, (f"{step}, {cores} core{'s' if cores > 1 else ''}", 34), ("pictures/s", 11), (f"against {other}", 32)
    )
    for name, rate in rates.items():
        rows.add(name, f"{rate:,.0f}", f"{rate / rates[other]:.2f}x")
    return found | _times(timings)


def _times(timings: Mapping[str, Timing]) -> dict[str, Any]:
    return {"seconds": {name: asdict(timing) for name, timing in timings.items()}}


def _ratio(theirs: float, ours: float) -> str:
    return f"{theirs / ours:.2f}x"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:,.1f} us"


class _Rows:
    """A table whose rows are shown as soon as they are measured: a name, right-aligned columns, a last free one."""

    def __init__(self, console: Console, *columns: tuple[str, int]) -> None:
        self._console, self._widths = console, [width for _, width in columns]
        self.add(*(heading for heading, _ in columns), style="bold")

    def add(self, *cells: str, style: str = "") -> None:
        """Prints one row."""
        name, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, self._widths, strict=True))
        )
        self._console.print(Text("  ".join([name, *rest]), style=style), soft_wrap=True)
