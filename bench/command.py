"""`fasttransfer bench`: measures, prints a table, writes JSON that says on what machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from fasttransfer import info, machine
from fasttransfer.bench import kernels, training
from fasttransfer.bench.timing import Timing, compare, copying
from fasttransfer.errors import InputError
from fasttransfer.files import make_folder, replace_file
from fasttransfer.geometry import GEOMETRIES


@dataclass(frozen=True)
class Size:
    """How long is measured: samples of each variant, pictures a training step."""

    rounds: int
    batch: int


QUICK, FULL = Size(3, 32), Size(7, 128)


def run(part: str, *, quick: bool, only: str, device: str, out: Path | None, console: Console) -> None:
    """Measures `part` ("kernels" or "step") on `device`; every result is on the disk as soon as it is known.

    Args:
        quick: fewer samples and a smaller batch: minutes become seconds, and numbers rough.
        only: cases whose names contain this.
        out: the JSON file; none is written without.

    Raises:
        InputError: nothing has that name, or `out` cannot be written.
    """
    names = [case.label for case in kernels.cases()] if part == "kernels" else list(GEOMETRIES)
    if not any(only in name for name in names):
        raise InputError(f"--only {only}: no case has that in its name: {', '.join(names)}")
    if device == "cpu":
        machine.keep_freed_memory()  # as a grid's workers do, for everything that is measured
    size = QUICK if quick else FULL
    measure = {"kernels": _kernels, "step": _step}[part]
    result: dict[str, Any] = {
        "command": f"fasttransfer bench {part}{' --quick' if quick else ''}{f' --only {only}' if only else ''}",
        "machine": info.measured_on() | {"threads": str(torch.get_num_threads())},
        "device": device,
    }
    if out is not None:
        make_folder(out.parent)
        _write(out, result)  # refused now rather than when minutes have been measured
    for found in measure(size, only, torch.device(device), console):
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
        if only not in case.label:
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
