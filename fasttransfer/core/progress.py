"""How far a study is: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.text import Text

LINE_SECONDS = 5.0

Log = Callable[[str], None]
"""A function that tells the user one sentence."""


class Display:
    """One overall measure (multiply-adds) and a line for what is going on. Use as a context manager.

    The time left is what remains at the rate of this run, not counting what an earlier run did.
    """

    def __init__(self, console: Console, total: float) -> None:
        self._console = console
        self._total, self._done, self._first = total, 0.0, 0.0
        self._start = self._told = time.monotonic()
        self._what = ""
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TaskProgressColumn(),
                BarColumn(None),
                TextColumn("{task.fields[left]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=max(total, 1.0), left="")

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(text))

    def doing(self, what: str) -> None:
        """Says what is training."""
        self._what = what
        if self._bar:
            self._bar.update(self._task, left=self._left())

    def skip(self, amount: float) -> None:
        """`amount` of the total was done by an earlier run."""
        self._done += amount
        self._first += amount

    def advance(self, amount: float) -> None:
        """`amount` more is done."""
        self._done += amount
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=self._done, left=self._left())
        elif now - self._told >= LINE_SECONDS:
            self._told = now
            self._console.print(Text(f"{100 * self._share():3.0f} %  {self._left()}"), soft_wrap=True)

    def _share(self) -> float:
        return min(self._done / self._total, 1.0) if self._total else 1.0

    def _left(self) -> str:
        spent, gained = time.monotonic() - self._start, self._done - self._first
        left = (
            f"{format_duration(spent / gained * max(self._total - self._done, 0))} left" if gained > 0 else "starting"
        )
        return f"{left}  {self._what}" if self._what else left


def format_duration(seconds: float) -> str:
    """48 s, 4 min 05 s, 3 h 20 min, 2 days 5 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    if seconds < 172_800:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
    return f"{seconds // 86_400} days {seconds % 86_400 // 3600} h"


def format_bytes(count: float) -> str:
    """12 MB, 3.4 GB: decimal units."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
