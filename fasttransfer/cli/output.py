"""Standard output and standard error as a command may find them: closed, on a full disk, or unable to show a letter."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO, cast

from fasttransfer.core.errors import os_reason
from fasttransfer.core.text import ENCODE_ERRORS

_PATIENCE = 1.0  # seconds that a command may go on without a reader before it says so: `… | head` is no news


class Output:
    """A stream that a command survives: what it cannot write is lost, and the command goes on.

    Training for days is worth more than its progress lines.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._error: OSError | None = None
        self._lost_at = 0.0
        self._has_reported = False
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=ENCODE_ERRORS)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    @property
    def is_lost(self) -> bool:
        """Whether output is missing that somebody wanted: a reader that closes its pipe has had enough."""
        return self._error is not None and not isinstance(self._error, BrokenPipeError)

    def write(self, text: str) -> int:
        """Write text, as far as it can be written; return its length."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, as far as it can be flushed."""
        self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self._error, self._lost_at = error, time.monotonic()
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), self._stream.fileno())  # what is in buffers goes there too
        if self._error is not None and not self._has_reported:
            self._report(self._error)

    def _report(self, error: OSError) -> None:
        if self.is_lost or time.monotonic() - self._lost_at > _PATIENCE:
            self._has_reported = True
            if self._stream is not sys.__stderr__:
                what = os_reason(error) if self.is_lost else "its reader is gone"
                sys.stderr.write(f"fasttransfer: cannot print any more ({what}): the command goes on without output\n")


@contextmanager
def guard_output() -> Iterator[Output]:
    """Replace standard output and error by an `Output` each; yields that of standard output."""
    out = Output(sys.stdout or open(os.devnull, "w"))  # noqa: SIM115  # closed by the caller, as `>&-` does
    with redirect_stderr(cast(TextIO, Output(sys.stderr or open(os.devnull, "w")))):
        with redirect_stdout(cast(TextIO, out)):
            try:
                yield out
            finally:
                out.flush()
