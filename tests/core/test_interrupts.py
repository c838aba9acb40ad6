"""Signals that stop a command: a clean stop, then an interruption, then the end, none with a stack trace."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from fasttransfer.core import interrupts

# A command that stops for the first signal, is interrupted by the second, and cleans up until the third.
IMPATIENT = """
import signal, sys, time
from fasttransfer.core import interrupts
interrupts.handle_signals()
with interrupts.catch_signals(interrupts_again=True) as stop:
    signal.raise_signal(signal.SIGINT)
    assert stop.is_set()
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        signal.raise_signal(signal.SIGINT)
print("not reached")
"""


def test_the_third_ctrl_c_ends_the_process_at_once_and_quietly() -> None:
    done = subprocess.run([sys.executable, "-c", IMPATIENT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "interrupted\n", "")


@pytest.mark.parametrize("number", interrupts.STOPPING)
def test_every_stopping_signal_stops_cleanly_and_gives_its_exit_code(number: signal.Signals) -> None:
    interrupts.forget_signals()
    before = signal.signal(number, signal.default_int_handler)
    try:
        with interrupts.catch_signals(interrupts_again=True) as stop:
            signal.raise_signal(number)
            assert stop.is_set()
            with pytest.raises(KeyboardInterrupt):  # the second is handled as before the block
                signal.raise_signal(number)
        assert signal.getsignal(number) == signal.default_int_handler
        assert interrupts.exit_code() == 128 + number
    finally:
        signal.signal(number, before)


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.catch_signals(interrupts_again=True) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
