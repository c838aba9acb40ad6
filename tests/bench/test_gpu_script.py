"""The script for a borrowed GPU, without one: parts, time limits, interrupts, missing packages."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from waiting import PATIENCE, wait_until

from bench import gpu
from bench.gpu import GpuPart

WAITS = "import time\ntry: print('begun'); time.sleep(600)\nexcept KeyboardInterrupt: print('wrote what it knew')"
DEAF = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('begun')\ntime.sleep(600)"


def python(name: str, code: str, least: float = 0.0, most: float = 60.0, needed: bool = False) -> GpuPart:
    return GpuPart(name, [sys.executable, "-c", code], least, most, needed)


def outcomes(out: Path) -> dict[str, str]:
    return {row["part"]: row["outcome"] for row in json.loads((out / "summary.json").read_text())}


def test_parts_run_in_order_and_a_needed_one_that_fails_is_the_end(tmp_path: Path) -> None:
    todo = [
        replace(python("one", "import os; print(os.environ['SAID'])"), extra={"SAID": "first"}),
        python("two", "raise SystemExit(3)"),
        python("three", "raise SystemExit(4)", needed=True),
        python("four", ""),
    ]
    assert not gpu.run_all(todo, tmp_path, 1.0)
    assert (tmp_path / "one.log").read_text() == "first\n"
    assert outcomes(tmp_path) == {
        "one": "passed",
        "two": "failed with exit code 3",
        "three": "failed with exit code 4",
    }


def test_what_does_not_fit_or_is_not_there_is_left_out(tmp_path: Path) -> None:
    todo = [python("long", "", least=100.0), GpuPart("tool", ["no-such-tool"], 0.0), python("short", "")]
    assert gpu.run_all(todo, tmp_path, 0.5)
    found = outcomes(tmp_path)
    assert found["long"].startswith("left out: ") and found["long"].endswith("it takes 100")
    assert found["tool"] == "left out: there is no no-such-tool"
    assert found["short"] == "passed"


def test_a_part_that_takes_too_long_is_interrupted_and_then_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: dict[str, list[float | None]] = {}
    codes: dict[str, int] = {}

    class Watched(subprocess.Popen[bytes]):
        """Its time is over as soon as it has said that it begun; it then has all it needs to hear an interrupt."""

        def __init__(self, command: list[str], *, stdout: IO[bytes], **others: Any) -> None:
            self.log = Path(stdout.name)
            super().__init__(command, stdout=stdout, **others)

        def wait(self, timeout: float | None = None) -> int:
            name, times = self.log.stem, waited.setdefault(self.log.stem, [])
            times.append(timeout)
            if name != "next" and len(times) == 1:
                assert wait_until(lambda: self.log.read_text() == "begun\n")
                raise subprocess.TimeoutExpired(self.args, 0.0)
            if name == "deaf" and timeout is not None:
                raise subprocess.TimeoutExpired(self.args, 0.0)
            codes[name] = super().wait(PATIENCE)
            return codes[name]

    monkeypatch.setattr(gpu, "GRACE", 6.0)
    monkeypatch.setattr(subprocess, "Popen", Watched)
    todo = [python("polite", WAITS, most=10.0), python("deaf", DEAF, most=10.0), python("next", "", most=10.0)]
    assert not gpu.run_all(todo, tmp_path, 1.0)
    assert waited == {"polite": [4.0, 6.0], "deaf": [4.0, 6.0, None], "next": [4.0]}
    assert codes == {"polite": 0, "deaf": -signal.SIGKILL, "next": 0}
    assert (tmp_path / "polite.log").read_text() == "begun\nwrote what it knew\n"
    assert outcomes(tmp_path) == {
        "polite": "out of time: what it knew is in polite.log",
        "deaf": "out of time: what it knew is in deaf.log",
        "next": "passed",
    }


def test_all_that_the_hour_is_for_is_there(tmp_path: Path) -> None:
    found = {part.name: part for part in gpu.parts(tmp_path, None, Path("tiny.tar"))}
    names = list(found)
    assert names[:2] == ["build", "library"]
    assert [name for name in names if name in gpu.BENCHES] == list(gpu.BENCHES)
    assert (
        names.index("tests")
        < names.index("operators")
        < names.index("sanitizer")
        < names.index("study-natural-manmade")
    )
    assert f"--benchmark-json={tmp_path / 'step.json'}" in found["step"].command
    assert found["sanitizer"].command[0].endswith("compute-sanitizer") and found["sanitizer"].extra
    assert "study-random-0" in names and "study-random-0" not in [p.name for p in gpu.parts(tmp_path, None, None)]
    for path in gpu.BENCHES.values():
        file, _, test = path.partition("::")
        assert f"def {test}" in (gpu.ROOT / file).read_text()


def test_only_what_is_missing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch", "torchvision", "numpy", "nvidia-dali-cuda130"}
    monkeypatch.setattr(gpu, "_installed", lambda name: name in there)
    lacking = gpu.missing(None)
    assert "rich>=13.9" in lacking and "pytest>=9.0" in lacking and "matplotlib>=3.10" in lacking
    assert not any(line.startswith(("torch", "numpy", "nvidia")) for line in lacking)
    there.remove("nvidia-dali-cuda130")
    assert not any("dali" in line for line in gpu.missing(tmp_path))  # large: only where it was brought along
    (tmp_path / "nvidia_dali_cuda130-2.0-py3-none-any.whl").touch()
    assert "nvidia-dali-cuda130" in gpu.missing(tmp_path)
    names = [part.name for part in gpu.parts(tmp_path, tmp_path, None)]
    assert names[0] == "packages"
    there |= {line.split(">")[0] for line in lacking} | {"nvidia-dali-cuda130"}
    assert "packages" not in [part.name for part in gpu.parts(tmp_path, tmp_path, None)]


def test_without_a_gpu_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main(["1", "--out", str(tmp_path / "out")]) == 2
    assert "sees no CUDA device here: there is nothing to measure" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
