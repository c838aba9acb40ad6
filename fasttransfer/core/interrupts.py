"""The signals that stop a command: Ctrl-C, SIGTERM, SIGUSR1 (SLURM's warning) and SIGHUP (a closed terminal)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""The signals that stop a command cleanly."""
_SHOW_CURSOR = b"\x1b[?25h\n"  # a progress bar hides it

_received: list[int] = []  # the stopping signals since `forget_signals`, in their order


def forget_signals() -> None:
    """Forget the signals that came before a command."""
    _received.clear()


def exit_code() -> int:
    """Return the exit code of an interrupted command, as a shell numbers it: 128 and the number of the first signal."""
    return 128 + (_received or [signal.SIGINT])[0]


def handle_signals() -> None:
    """Have the first stopping signal raise KeyboardInterrupt in this process, and the second end it at once.

    The second comes while the command cleans up, whose stack traces would be noise: all files are whole at any time. A
    signal that the caller has this process ignore, as nohup does, is ignored.
    """
    for number in _heeded():
        signal.signal(number, _raise_or_exit)


@contextmanager
def catch_signals(*, interrupts_again: bool) -> Iterator[threading.Event]:
    """Yield an event that a stopping signal sets, for a clean stop.

    Args:
        interrupts_again: whether a second signal is handled as before the block.
    """
    stop = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        _received.append(number)
        stop.set()
        if interrupts_again:
            restore()

    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        before |= {number: signal.signal(number, note) for number in _heeded()}
    try:
        yield stop
    finally:
        restore()


def _heeded() -> list[signal.Signals]:
    """Return the stopping signals that are not ignored, nor handled by a library written in C (None)."""
    return [number for number in STOPPING if signal.getsignal(number) not in (signal.SIG_IGN, None)]


def _raise_or_exit(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    for each in STOPPING:
        if signal.getsignal(each) == _raise_or_exit:
            signal.signal(each, _exit)
    raise KeyboardInterrupt


def _exit(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)
    os._exit(exit_code())
