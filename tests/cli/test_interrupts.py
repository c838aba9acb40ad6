"""A signal in the middle of `fasttransfer grid`: checkpoints, a sentence, the signal's exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from studies import tiny_choices
from waiting import once_there

from fasttransfer import cli
from fasttransfer.study import records
from fasttransfer.training import grid


@pytest.mark.workers
def test_slurms_warning_ends_a_study_with_checkpoints_and_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choices, out = tiny_choices(tmp_path), tmp_path / "run"
    command = ["grid", "--data", choices.data, "--recipe", str(choices.recipe), "--out", str(out)]
    command += ["--layers", "3", "--treatments", "transfer", "--targets", "B", "--steps", "1500"]
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(grid, "run", partial(grid.run, checkpoint_seconds=0.5))
    signalled = []

    def warn() -> None:
        signalled.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGUSR1)

    with once_there(out, "checkpoints/*", warn):
        assert cli.run(command) == 138
    assert time.monotonic() - signalled[0] < 10, "SIGKILL may come ten seconds later, as from docker stop"
    said = " ".join(capsys.readouterr().out.split())
    assert f"everything so far is in {out}, and fasttransfer report shows it. The same command goes on" in said
    results = records.read_results(out).results
    running = {f"{r.name}.s{r.seed}.safetensors" for r in results if r.state == "running"}
    assert running <= {path.name for path in (out / "checkpoints").iterdir()}
    assert any(result.waiting for result in results)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_ctrl_c_while_a_command_is_imported_is_an_interruption(tmp_path: Path) -> None:
    (tmp_path / "tyro.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-m", "fasttransfer", "info"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    assert done.stderr.splitlines() == [
        "fasttransfer: interrupted: what is done is kept, the same command goes on from there"
    ]
