"""Everything worth knowing from a borrowed GPU, most important first, within the minutes there are.

    python bench/gpu.py 25 --out gpu-results --wheels wheels

Builds the libraries where it stands (nvcc, PyTorch 2.11 or newer for CUDA 13, setuptools, ninja; no network needed),
runs the operators' tests on the GPU, then the benchmarks, and compute-sanitizer last, because it is slow. Each part
writes its log and results into the folder `--out` as soon as it has them; what does not fit the time is left out and
said so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable


@dataclass(frozen=True)
class Part:
    """One command; `least` seconds must be left for it to start, `needed` parts after it are skipped when it fails."""

    name: str
    command: Sequence[str]
    least: float
    needed: bool = False


def parts(out: Path, wheels: Path | None) -> list[Part]:
    """What is run, in this order."""
    install = [PYTHON, "-m", "pip", "install", "--quiet", "--no-index"]
    bench = [PYTHON, "-m", "fasttransfer", "bench"]
    tests = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    found = [
        Part("build", [*install, "--no-build-isolation", "--no-deps", "--editable", "."], 60, needed=True),
        Part("info", [PYTHON, "-m", "fasttransfer", "info"], 20),
        Part("tests", [*tests, "tests/ops", "tests/test_net.py", "tests/test_step.py", "-m", "not compiled"], 60),
        Part("feed tests", [*tests, "tests/pipelines/test_gpu_feeds.py", "tests/pipelines/test_decode_gpu.py"], 60),
        Part("kernels", [*bench, "kernels", "--out", str(out / "kernels.json")], 90),
        Part("step", [*bench, "step", "--out", str(out / "step.json")], 90),
        Part("data", [*bench, "data", "--quick", "--out", str(out / "data.json")], 90),
        Part("compiled tests", [*tests, "tests/ops", "-m", "compiled"], 60),
        Part("sanitizer", ["compute-sanitizer", "--error-exitcode", "1", *tests, "tests/ops", "-k", "cuda"], 120),
    ]
    if wheels is not None:
        names = ["hypothesis", "pytest-benchmark", "platformdirs", "rich", "tomli-w", "tyro", "xxhash"]
        if any(wheels.glob("nvidia_dali*.whl")):  # large; without it what needs it is skipped
            names.append("nvidia-dali-cuda130")
        found.insert(0, Part("packages", [*install, "--find-links", str(wheels), *names], 30, needed=True))
    return found


def main() -> int:
    """Runs the parts; 0 when all of them passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, help="all there are")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-results", help="folder of logs and results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels, for what the machine lacks")
    chosen = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} sees no CUDA device here: there is nothing to measure", file=sys.stderr)
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * chosen.minutes
    good = True
    for part in parts(chosen.out.resolve(), chosen.wheels):
        start = time.monotonic()
        outcome = _run(part, chosen.out, end - start)
        print(f"{part.name:16}{time.monotonic() - start:7.0f} s  {outcome}", flush=True)
        good &= outcome == "passed"
        if part.needed and outcome != "passed":
            break
    return 0 if good else 1


def _run(part: Part, out: Path, left: float) -> str:
    """Runs one part, its output into a file, the end of that shown when it fails; returns how it went."""
    if left < part.least:
        return f"left out: {max(left, 0):.0f} s were left, it takes {part.least:.0f}"
    log = out / f"{part.name.replace(' ', '-')}.log"
    try:
        with log.open("wb") as file:
            done = subprocess.run(part.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=left)
    except subprocess.TimeoutExpired:
        return "out of time"
    except FileNotFoundError:
        return f"left out: there is no {part.command[0]}"
    if done.returncode:
        print(*log.read_text(errors="replace").splitlines()[-30:], sep="\n")
    return "passed" if done.returncode == 0 else f"failed with exit code {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
