"""Tables that grow while things are measured, and how numbers are written in them and in the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from fasttransfer.bench.timing import Timing


def times(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Timings as they are written."""
    return {"seconds": {name: asdict(timing) for name, timing in timings.items()}}


def ratio(theirs: float, ours: float) -> str:
    """How many times as long theirs take."""
    return f"{theirs / ours:.2f}x"


def time(seconds: float) -> str:
    """Milliseconds, or microseconds where there is less than one."""
    return f"{seconds * 1e3:,.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:,.1f} us"


class Rows:
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
