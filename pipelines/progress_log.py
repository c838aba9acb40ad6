"""How far long work is: a line every few seconds, with the rate and the time left."""

from __future__ import annotations

import time

from fasttransfer.core.progress import Log, format_duration

SAY_EVERY = 5.0  # seconds between lines


class ProgressLog:
    """Counts images; what an earlier run did counts as done, but not for the rate.

    Args:
        what: begins each line.
        total: images; done: those that are done already.
    """

    def __init__(self, what: str, total: int, log: Log, done: int = 0) -> None:
        self._what, self._total, self._say = what, total, log
        self._done, self._first = done, done
        self._start = self._said = time.monotonic()

    def step(self, count: int = 1) -> None:
        """So many images more."""
        self._done += count
        now = time.monotonic()
        if now - self._said >= SAY_EVERY and self._done > self._first:
            self._said = now
            rate = (self._done - self._first) / (now - self._start)
            self._say(
                f"{self._what}: {self._done:,} of {self._total:,} images, {rate:,.0f} a second, "
                f"{format_duration((self._total - self._done) / rate)} left"
            )

    def finish(self) -> None:
        """The last line."""
        took, count = time.monotonic() - self._start, self._done - self._first
        earlier = f", {self._first:,} images were there from before" if self._first else ""
        self._say(
            f"{self._what}: done in {format_duration(took)}, {count / max(took, 1e-9):,.0f} images per second{earlier}"
        )
