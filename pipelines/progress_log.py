"""Log lines about long work: every few seconds how far it is, how fast, and the time left."""

from __future__ import annotations

import time

from fasttransfer.core.progress import Log, format_duration

LINE_SECONDS = 5.0  # between lines


class ProgressLog:
    """A counter of images; those that an earlier run did count as done, but not for the speed.

    Args:
        what: begins each line.
        total: images; done: those that are done already.
    """

    def __init__(self, what: str, total: int, log: Log, done: int = 0) -> None:
        self._what, self._total, self._log = what, total, log
        self._done, self._first = done, done
        self._start = self._logged = time.monotonic()

    def step(self, count: int = 1) -> None:
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
        seconds, count = time.monotonic() - self._start, self._done - self._first
        earlier = f", {self._first:,} images were there from before" if self._first else ""
        self._log(
            f"{self._what}: done in {format_duration(seconds)}, {count / max(seconds, 1e-9):,.0f} images per second"
            f"{earlier}"
        )
