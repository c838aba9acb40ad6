"""The CUDA kernels without a GPU: csrc/cuda/ as it is, compiled for the CPU under the sanitizers; see emulation/.

What the kernels must do stands in emulated.py, which is run here in a process of its own: the address sanitizer has to
be there before Python is. That the emulation finds mistakes at all is shown with kernels that make them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KERNELS = sorted(path for path in (ROOT / "csrc" / "cuda").glob("*.cu") if "emulation" not in path.name)
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

pytestmark = pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="needs Linux and a C++ compiler")


def compile_(source: Path, target: Path) -> Path:
    """Kernels are C++ here: what CUDA adds to it stands in emulation/, which comes first on the include path."""
    includes = [f"-I{HERE / 'emulation'}", f"-I{ROOT / 'csrc'}"]
    includes += [f"-isystem{path}" for path in cpp_extension.include_paths("cpu")]
    flags = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fno-strict-aliasing", "-Wno-unknown-pragmas", *SANITIZE]
    stable = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command = [str(COMPILER), "-x", "c++", *flags, *stable, *includes, "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def link(objects: list[Path], library: Path, *libraries: str) -> Path:
    torch_at = Path(torch.__file__).parent / "lib"
    command = [str(COMPILER), "-shared", *SANITIZE, *map(str, objects), f"-L{torch_at}", *libraries, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with the sanitizers; libstdc++ beside them, which they must find before the first exception."""
    found = [_runtime(name) for name in ("libasan.so", "libstdc++.so")]
    sanitizers = {
        "LD_PRELOAD": " ".join(map(str, found)),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | sanitizers | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def _runtime(name: str) -> Path:
    done = subprocess.run([str(COMPILER), f"-print-file-name={name}"], capture_output=True, text=True)
    found = Path(done.stdout.strip())
    if not found.is_absolute():
        pytest.skip(f"{COMPILER} has no {name}")
    return found.resolve()


def test_kernels(tmp_path: Path) -> None:
    sources = [*KERNELS, HERE / "emulation" / "emulation.cpp"]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        objects = list(workers.map(lambda source: compile_(source, tmp_path / f"{source.name}.o"), sources))
    library = link(objects, tmp_path / "_emulated.so", "-ltorch_cpu", "-lc10")
    # Of pytest, the project's settings but not this run's arguments.
    cases = str(HERE / "emulated.py")
    done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", cases, FASTTRANSFER_EMULATED=str(library))
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-20_000:]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    sources = [HERE / "emulation" / "faults.cpp", HERE / "emulation" / "emulation.cpp"]
    return link([compile_(source, folder / f"{source.name}.o") for source in sources], folder / "faults.so")


def _fault(faults: Path, call: str) -> subprocess.CompletedProcess[str]:
    return run("-c", f"import ctypes; library = ctypes.CDLL({str(faults)!r})\n{call}")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("beyond_shared", "AddressSanitizer: heap-buffer-overflow"),
        ("beyond_global", "AddressSanitizer: heap-buffer-overflow"),
        ("misaligned", "within misaligned address"),
        ("missed_barrier", "waits for threads that have ended or wait elsewhere"),
        ("absent_lane", "reads from a lane that takes no part"),
    ],
)
def test_the_emulation_finds(faults: Path, fault: str, says: str) -> None:
    done = _fault(faults, f"library.{fault}()")
    assert done.returncode != 0
    assert says in done.stderr


def test_the_emulation_finds_a_race(faults: Path) -> None:
    """A sum through shared memory without a barrier differs with the order of the threads; with one it does not."""
    script = "for barrier in (0, 1):\n  for order in range(4):\n    library.emulation_order(order)\n"
    script += "    print(barrier, library.shared_sum(barrier))"
    done = _fault(faults, script)
    assert done.returncode == 0, done.stderr
    sums = [line.split() for line in done.stdout.splitlines()]
    assert len({total for barrier, total in sums if barrier == "0"}) > 1
    assert {total for barrier, total in sums if barrier == "1"} == {str(sum(range(64)))}
