"""SIGKILL in the middle of a study: resumed, it ends with the very bits of one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

import torch.multiprocessing as mp
from studies import tiny_choices
from test_grid import quiet, same_study

from fasttransfer import engine, grid, records
from fasttransfer.assembly import Setting
from fasttransfer.study import Choices

# Checkpoints as often as possible, so that kills meet every stage of writing them.
DRIVER = """
import sys
from pathlib import Path
from fasttransfer import grid
from fasttransfer.study import Choices
if __name__ == "__main__":
    choices = Choices(**eval(sys.argv[1]))
    grid.run(choices, Path(sys.argv[2]), checkpoint_seconds=0.0)
"""
STEPS = 200


def start(choices: Choices, out: Path) -> subprocess.Popen[bytes]:
    script = out.parent / "driver.py"
    script.write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, str(script), repr(asdict(choices)), str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def alive_in_session(session: int) -> list[int]:
    """Processes of the session that still run (zombies do not)."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def gone(session: int) -> bool:
    return not alive_in_session(session)


def met(out: Path, pattern: str, driver: subprocess.Popen[bytes]) -> bool:
    """A file of this pattern is there, or the driver was too fast."""
    return any(out.glob(pattern)) or driver.poll() is not None


def wait_until(what: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


def test_a_killed_study_resumes_to_the_same_weights_and_records(tmp_path: Path) -> None:
    choices = tiny_choices(tmp_path, layers=(2, 7), treatments=("transfer", "selffer+"), steps=STEPS)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    assert grid.run(choices, undisturbed, console=quiet())
    kills = 0
    for wanted in ("checkpoints/base*", "weights/base*", "checkpoints/A*"):
        driver = start(choices, out)
        assert wait_until(partial(met, out, wanted, driver), 60), wanted
        if driver.poll() is None:
            os.kill(driver.pid, signal.SIGKILL)
            kills += 1
        driver.wait()
        assert wait_until(partial(gone, driver.pid), 10), "workers outlived their driver"
    assert kills == 3
    assert {r.state for r in records.read(out).results} != {"done"}
    assert grid.run(choices, out, console=quiet())
    same_study(undisturbed, out)
    leftovers = [p.name for p in out.rglob("*") if p.name.endswith((".tmp", ".damaged"))]
    assert not leftovers


def test_a_killed_worker_is_told_and_loses_nothing(tmp_path: Path) -> None:
    choices = tiny_choices(tmp_path, layers=(2,), treatments=("transfer", "selffer+"), steps=STEPS)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    assert grid.run(choices, undisturbed, console=quiet())
    driver = start(choices, out)
    assert wait_until(partial(met, out, "checkpoints/A*", driver), 60)
    worker = next(
        pid for pid in alive_in_session(driver.pid)
        if pid != driver.pid and b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )  # fmt: skip
    os.kill(worker, signal.SIGKILL)
    _, error = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert b"a worker ended with exit code -9" in error
    assert grid.run(choices, out, console=quiet())
    same_study(undisturbed, out)


def test_ctrl_c_while_a_worker_starts_does_not_end_it(tmp_path: Path) -> None:
    """Until it ignores the signals itself it is deaf to them; its parent hears them as before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    context = mp.get_context("spawn")
    worker = engine._Worker(context, cast(Setting, None), 0, context.Event())
    try:
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
    finally:
        worker.process.kill()
        worker.end()
    blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
    assert all(blocked >> (each - 1) & 1 for each in (signal.SIGINT, signal.SIGTERM))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
