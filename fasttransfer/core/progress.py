"""Progress: of a study, as a bar or lines; of work on images, as lines. Durations and sizes as text."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from fasttransfer.core.console import print_line
from fasttransfer.core.text import printable

LINE_SECONDS = 5.0  # between lines

Log = Callable[[str], None]
"""A function that shows the user one sentence."""


class Display:
    """The share of the work (multiply-adds) done, the time left, and the present activity. Use as a context manager.

    The time left is estimated from the speed of this run, without the work of earlier runs.
    """

    def __init__(self, console: Console, total: float) -> None:
        self._console = console
        self._total, self._done, self._done_before = total, 0.0, 0.0
        self._start = self._last_line = time.monotonic()
        self._activity = ""
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TaskProgressColumn(),
                BarColumn(None),
                TextColumn("{task.fields[left]}", markup=False),
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
        """Print a line that stays."""
        print_line(self._console, text)

    def doing(self, activity: str) -> None:
        """Show the present activity."""
        self._activity = activity
        if self._bar:
            self._bar.update(self._task, left=self._left())

    def skip(self, amount: float) -> None:
        """Count `amount` as done by an earlier run."""
        self._done += amount
        self._done_before += amount

    def advance(self, amount: float) -> None:
        """Count `amount` as done by this run."""
        self._done += amount
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=self._done, left=self._left())
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            print_line(self._console, f"{100 * self._share():3.0f} %  {self._left()}")

    def _share(self) -> float:
        return min(self._done / self._total, 1.0) if self._total else 1.0

    def _left(self) -> str:
        seconds, done = time.monotonic() - self._start, self._done - self._done_before
        left = f"{format_duration(seconds / done * max(self._total - self._done, 0))} left" if done > 0 else "starting"
        return f"{left}  {printable(self._activity)}" if self._activity else left


class ProgressLog:
    """A counter of images that logs a line every few seconds: how far it is, how fast, and the time left.

    Args:
        what: begins each line.
        total: images.
        done: those that an earlier run did, which do not count for the speed.
    """

    def __init__(self, what: str, total: int, log: Log, done: int = 0) -> None:
        self._what, self._total, self._log = what, total, log
        self._done, self._first = done, done
        self._start = self._logged = time.monotonic()

    def step(self, count: int) -> None:
        """Count so many more images."""
        self._done += count
        now = time.monotonic()
        if now - self._logged >= LINE_SECONDS and self._done > self._first:
            self._logged = now
            speed = (self._done - self._first) / (now - self._start)
            self._log(
                f"{self._what}: {self._done:,} of {self._total:,} images, {speed:,.0f} images per second, "
                f"{format_duration((self._total - self._done) / speed)} left"
            )

    def finish(self) -> None:
        """Log the last line."""
        seconds = time.monotonic() - self._start
        speed = (self._done - self._first) / max(seconds, 1e-9)
        earlier = f", {self._first:,} images were there from before" if self._first else ""
        self._log(f"{self._what}: done in {format_duration(seconds)}, {speed:,.0f} images per second{earlier}")


def format_duration(seconds: float) -> str:
    """Return a duration as 48 s, 4 min 05 s, 3 h 20 min or 2 days 5 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    if seconds < 172_800:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
    return f"{seconds // 86_400} days {seconds % 86_400 // 3600} h"


def format_bytes(count: float) -> str:
    """Return a size as 12 MB or 3.4 GB, in decimal units."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
