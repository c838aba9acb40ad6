"""Waiting for what another thread or process does, and acting in the middle of it: never after a guess of seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 300.0  # seconds for what takes a few: a machine may be busy


def wait_until(what: Callable[[], bool]) -> bool:
    """True as soon as `what` is; False where it is not for `PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


@contextmanager
def once_there(out: Path, pattern: str, do: Callable[[], None]) -> Iterator[None]:
    """Does something as soon as a file of this pattern is there, beside what the block does meanwhile.

    The test fails where the block ended before: what it was to be disturbed by never happened, nor does it later.
    """
    over, turn, done = threading.Event(), threading.Lock(), list[bool]()

    def there() -> bool:
        return any(out.glob(pattern))

    def watch() -> None:
        wait_until(lambda: over.is_set() or there())
        with turn:
            if not over.is_set() and there():
                done.append(True)
                do()

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            with turn:
                over.set()
        watching.result()
    assert done, f"nothing was disturbed: all was over before {pattern} was there"
