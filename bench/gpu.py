"""Build, test and measure on a borrowed GPU, the most important first, within the minutes there are.

    python bench/gpu.py 55 --out gpu-results --wheels wheels --images tiny-imagenet-200.tar
    python bench/gpu.py 9 --out gpu-results --only build tests operators

Builds the libraries where it stands (nvcc, PyTorch 2.11 or newer for CUDA 13, Python 3.11 or newer, setuptools, ninja;
no network needed), runs the tests on the GPU, every benchmark, the tests again under compute-sanitizer, and last whole
studies of the images of a Tiny-ImageNet tar. Each part writes its log and results into the folder `--out` as soon as
it has them, and may take no more than its share; parts that do not fit into the time are left out and named. `--only`
runs some parts: a lender may allow ten minutes at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
TOOLKIT = Path("/usr/local/cuda")  # the usual place of nvcc if it is not on the path
GRACE = 30.0  # seconds that an interrupted part has to write what it knows
SUITES = "bench/suites/test_suites.py"
BENCHES = {
    "operators": f"{SUITES}::test_operators",
    "step": f"{SUITES}::test_step",
    "cells": "bench/test_cells.py",
    "ablation": "bench/test_ablation.py",
    "cohorts": "bench/test_cohorts.py",
    "feed": f"{SUITES}::test_feed",
}
# A wheel of these would replace the machine's PyTorch, or needs the GPU's libraries.
GIVEN = {"fasttransfer", "torch", "torchvision", "nvidia-dali-cuda130"}


@dataclass(frozen=True)
class GpuPart:
    """One command.

    Attributes:
        least: seconds that must be left for it to start.
        most: seconds after which it is interrupted.
        needed: whether nothing after it makes sense when it fails.
        extra: what its environment has beside that of all parts.
    """

    name: str
    command: Sequence[str]
    least: float
    most: float = 600.0
    needed: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)


def parts(out: Path, wheels: Path | None, images: Path | None) -> list[GpuPart]:
    """Return the parts in the order in which they run."""
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--no-index"]
    ours = [PYTHON, "-m", "fasttransfer"]
    tests = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=120"]
    benches = [
        PYTHON,
        "-m",
        "pytest",
        "-s",
        "-q",
        "--benchmark-quiet",
        "-p",
        "fasttransfer.bench.harness",
        "--device=cuda",
    ]
    operators = ["tests/ops", "tests/networks/test_caffenet.py", "tests/training/test_step.py"]
    found = []
    lacking = missing(wheels)
    if wheels is not None and lacking:
        found.append(GpuPart("packages", [*pip, "--find-links", str(wheels), *lacking], 20, needed=True))
    found += [
        GpuPart("build", [*pip, "--no-build-isolation", "--no-deps", "--editable", "."], 60, needed=True),
        GpuPart("library", [PYTHON, "-c", _LOADED], 20, needed=True),
        GpuPart("machine", ["nvidia-smi", "-q"], 5, 60),
        GpuPart("info", [*ours, "info"], 20, 60),
        GpuPart("tests", [*tests, *operators, "-m", "not compiled"], 60),
    ]
    found += [
        GpuPart(name, [*benches, f"--benchmark-json={out / name}.json", path], 60, 420)
        for name, path in BENCHES.items()
    ]
    found += [
        GpuPart(
            "feed tests", [*tests, "tests/pipelines/test_gpu_feeds.py", "tests/pipelines/test_gpu_decoder.py"], 60, 300
        ),
        # Tensors out of PyTorch's pools lie beside each other: reaching from one into the next would go unnoticed.
        GpuPart(
            "sanitizer",
            [_sanitizer(), "--error-exitcode", "1", *tests, "tests/ops", "-k", "cuda", "-m", "not compiled"],
            120,
            480,
            extra={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        ),
        GpuPart("compiled tests", [*tests, "tests/ops", "-m", "compiled"], 60, 300),
    ]
    if images is not None:
        for split in ("natural-manmade", "random:0"):
            folder = out / f"study-{split.replace(':', '-')}"
            grid = ["grid", "--split", split, "--data", str(images), "--device", "cuda", "--out", str(folder)]
            found.append(GpuPart(folder.name, [*ours, *grid], 120, 900))
    return found


def missing(wheels: Path | None) -> list[str]:
    """Return the requirements that the machine lacks; DALI only if there is a wheel of it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["bench"], *extras["test"]]
    found = []
    for line in wanted:
        requirement = line.split(";")[0].strip()
        name = re.split(r"[^\w.-]", requirement)[0]
        if name not in GIVEN and not _installed(name):
            found.append(requirement)
    if wheels is not None and any(wheels.glob("nvidia_dali*.whl")) and not _installed("nvidia-dali-cuda130"):
        found.append("nvidia-dali-cuda130")
    return found


def environment() -> dict[str, str]:
    """Return the environment of the parts: with nvcc, and with permission to add to the system's Python."""
    found = dict(os.environ) | {"PIP_BREAK_SYSTEM_PACKAGES": "1", "PYTHONUNBUFFERED": "1"}
    if "CUDA_HOME" not in found and shutil.which("nvcc") is None and (TOOLKIT / "bin" / "nvcc").exists():
        found["CUDA_HOME"] = str(TOOLKIT)
    return found


def run_all(todo: Sequence[GpuPart], out: Path, minutes: float) -> bool:
    """Run the parts within some minutes, write `out`/summary.json, and return whether all that started passed."""
    end = time.monotonic() + 60 * minutes
    summary: list[dict[str, object]] = []
    good = True
    for part in todo:
        start = time.monotonic()
        outcome = run_one(part, out, end - start)
        seconds = time.monotonic() - start
        print(f"{part.name:24}{seconds:7.0f} s  {outcome}", flush=True)
        summary.append({"part": part.name, "seconds": round(seconds, 1), "outcome": outcome})
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        good &= outcome == "passed" or outcome.startswith("left out")
        if part.needed and outcome != "passed":
            break
    return good


def run_one(part: GpuPart, out: Path, left: float) -> str:
    """Run one part, write its output to a file, show the end of it after a failure, and return the outcome."""
    if left < part.least:
        return f"left out: {max(left, 0):.0f} s were left, it takes {part.least:.0f}"
    log = out / f"{part.name.replace(' ', '-')}.log"
    try:
        with log.open("wb") as file:
            # A session of its own: an interrupt reaches the processes that a part starts as well.
            process = subprocess.Popen(
                part.command,
                cwd=ROOT,
                env={**environment(), **part.extra},
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            code = _wait(process, min(part.most, left))
    except FileNotFoundError:
        return f"left out: there is no {part.command[0]}"
    if code is None:
        return f"out of time: what it knew is in {log.name}"
    if code:
        print(*log.read_text(errors="replace").splitlines()[-30:], sep="\n")
    return "passed" if code == 0 else f"failed with exit code {code}"


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return the exit code; None if the time was over and the part was interrupted, then killed."""
    try:
        return process.wait(max(1.0, seconds - GRACE))
    except subprocess.TimeoutExpired:
        for sign, wait in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
            try:
                os.killpg(process.pid, sign)
                process.wait(wait)
                break
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
    return None


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _sanitizer() -> str:
    """Return the path of compute-sanitizer, which is in the toolkit."""
    found = environment().get("CUDA_HOME", str(TOOLKIT))
    return shutil.which("compute-sanitizer") or str(Path(found) / "bin" / "compute-sanitizer")


# Without the library, plain PyTorch would be measured in place of the kernels.
_LOADED = """
import sys
from fasttransfer.ops import native
where = native.operators()
print(*where.items(), native.why_not(), sep="\\n")
sys.exit(not any("CUDA" in place for place in where.values()))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and return 0 if all that started passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, help="all there are")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-results", help="folder of logs and results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels, for what the machine lacks")
    parser.add_argument("--images", type=Path, help="Tiny-ImageNet, for whole studies: its folder or tar")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run only these parts")
    chosen = parser.parse_args(arguments)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a shell's background; parts would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    if not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} sees no CUDA device here: there is nothing to measure", file=sys.stderr)
        return 2
    for path in (chosen.wheels, chosen.images):
        if path is not None and not path.exists():
            print(f"{path}: is not there", file=sys.stderr)
            return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    todo = parts(
        chosen.out.resolve(),
        *(path.resolve() if path is not None else None for path in (chosen.wheels, chosen.images)),
    )
    if chosen.only:
        unknown = set(chosen.only) - {part.name for part in todo}
        if unknown:
            print(
                f"no such part: {', '.join(sorted(unknown))}: {', '.join(part.name for part in todo)}", file=sys.stderr
            )
            return 2
        todo = [part for part in todo if part.name in chosen.only]
    return 0 if run_all(todo, chosen.out.resolve(), chosen.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
