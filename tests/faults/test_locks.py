"""File systems without locks, as some mounts of NFS and Lustre are: one process at a time works in a folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from studies import draw_images, tiny_recipe

# Holds a lock until its input ends; the second argument says how long a lease is.
HOLDER = """
import sys
from pathlib import Path
from fasttransfer.core import files
files._LEASE_SECONDS = float(sys.argv[2])

def busy():
    print("busy", flush=True)
    if sys.argv[3] == "refuse":
        sys.exit(3)

with files.hold_lock(Path(sys.argv[1]), busy):
    print("held", flush=True)
    sys.stdin.read()
"""

Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def lockless(interposer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs started from here find no locks on any file system."""
    monkeypatch.setenv("LD_PRELOAD", str(interposer))
    monkeypatch.setenv("FAULT_WITHOUT_LOCKS", "1")


@pytest.fixture
def hold(tmp_path: Path, lockless: None) -> Hold:
    """Start a process that holds the lock `.lock` until its input ends."""

    def start(*, lease: float, otherwise: str = "wait") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock"), str(lease), otherwise]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return start


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_process_holds_a_lock_and_another_gets_it_afterwards(hold: Hold) -> None:
    with hold(lease=1.0) as first:
        assert line(first) == "held"
        with hold(lease=1.0, otherwise="refuse") as second:
            assert line(second) == "busy"
        assert second.returncode == 3
        with hold(lease=1.0) as third:
            assert line(third) == "busy"
            first.communicate()
            assert line(third) == "held"
            third.communicate()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(hold: Hold) -> None:
    with hold(lease=600.0) as first:
        assert line(first) == "held"
        first.kill()
    with hold(lease=600.0, otherwise="refuse") as second:
        assert line(second) == "held"
        second.communicate()


def test_an_owner_that_was_suspended_stops_when_its_lock_was_taken_over(hold: Hold) -> None:
    with hold(lease=1.0) as first:
        assert line(first) == "held"
        first.send_signal(signal.SIGSTOP)
        with hold(lease=1.0, otherwise="refuse") as second:
            assert line(second) == "held"
            first.send_signal(signal.SIGCONT)
            assert first.wait() == -signal.SIGTERM
            second.communicate()


def test_a_study_is_trained_and_reported(lockless: None, tmp_path: Path) -> None:
    images, out = draw_images(tmp_path / "images", ("ant", "bee", "cat", "dog")), tmp_path / "run"
    grid = ["grid", "--data", str(images), "--split", "random:0", "--recipe", tiny_recipe(tmp_path), "--device", "cpu"]
    grid += ["--treatments", "transfer", "--layers", "2", "--targets", "B", "--out", str(out)]
    ran = subprocess.run([sys.executable, "-m", "fasttransfer", *grid], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "complete" in ran.stdout and (out / "report" / "index.html").is_file()
    assert not list(tmp_path.rglob("*.lease"))
