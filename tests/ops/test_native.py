"""The libraries as they are built, and what is said where they cannot be."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fasttransfer
from fasttransfer.ops import native

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(native.__file__).parent
LIBRARY = next(PACKAGE.glob("_native_cpu*"), None)
GPU_LIBRARY = next(PACKAGE.glob("_native_cuda*"), None)

# As setup.py decides.
BUILDS_FOR_GPUS = (
    sys.platform == "linux"
    and torch.version.cuda is not None
    and os.environ.get("FASTTRANSFER_CUDA") != "0"
    and shutil.which("nvcc", path=f"{os.environ['CUDA_HOME']}/bin" if "CUDA_HOME" in os.environ else None) is not None
)
needs_gpu_library = pytest.mark.skipif(not BUILDS_FOR_GPUS, reason="nvcc or a PyTorch for CUDA is missing")


def test_the_library_is_built_and_loaded() -> None:
    assert native.why_not() == ""
    assert native.load()
    assert set(native.operators()) == set(native.SCHEMAS)
    assert all("native on the CPU" in where for where in native.operators().values())


def test_a_library_older_than_an_operator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(native.SCHEMAS, "newer", "(Tensor x) -> Tensor")
    assert native._name_missing_kernels("cpu").startswith(
        "the native library is older than this source and lacks newer: build it"
    )
    assert native.operators()["newer"] == "PyTorch"


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    assert "is not built" in native.load_library(tmp_path)


@pytest.mark.skipif(platform.system() != "Linux", reason="about ELF files")
@pytest.mark.parametrize(
    ("at", "old", "new", "says"),
    [
        (18, None, b"\xff", "built for another platform"),  # another processor
        (4, b"\x02", b"\x01", "built for another platform"),  # 32 bits
        (0, b"\x7fELF", b"\xcf\xfa\xed\xfe", "built for another platform"),  # another system
        (None, b"torch_library_impl\0", b"torch_library_none\0", "does not load under PyTorch"),  # too old
    ],
    ids=["processor", "32-bit", "system", "symbol"],
)
def test_a_library_that_does_not_load(tmp_path: Path, at: int | None, old: bytes | None, new: bytes, says: str) -> None:
    assert LIBRARY is not None
    elf = LIBRARY.read_bytes()
    start = elf.index(old) if at is None else at
    assert old is None or elf[start : start + len(new)] == old
    copy = tmp_path / LIBRARY.name
    copy.write_bytes(elf[:start] + new + elf[start + len(new) :])
    reason = native.load_library(tmp_path)
    assert reason.startswith(str(copy))
    assert says in reason
    assert "pip install" in reason


@needs_gpu_library
def test_the_library_for_gpus_is_built_with_nvcc() -> None:
    assert GPU_LIBRARY is not None
    assert b"libcudart.so" not in GPU_LIBRARY.read_bytes()  # CUDA's runtime is in it


@needs_gpu_library
@pytest.mark.parametrize(("listing", "holds"), [("--list-elf", {"sm_80", "sm_90"}), ("--list-ptx", {"sm_90"})])
def test_the_gpus_that_the_library_is_built_for(listing: str, holds: set[str]) -> None:
    """Machine code for two generations, and for later ones what their drivers translate."""
    triton = importlib.util.find_spec("triton")
    at = [f"{folder}/backends/nvidia/bin" for folder in (triton.submodule_search_locations or [])] if triton else []
    cuobjdump = shutil.which("cuobjdump", path=os.pathsep.join([os.environ["PATH"], *at]))
    if cuobjdump is None:
        pytest.skip("no cuobjdump")
    done = subprocess.run([cuobjdump, listing, str(GPU_LIBRARY)], capture_output=True, text=True, check=True)
    parts = re.findall(r"\.(sm_\w+)\.", done.stdout)
    assert set(parts) == holds
    sources = len(list((ROOT / "csrc" / "cuda").glob("*.cu")))
    assert len(parts) == sources * len(holds)


def run_python(script: str, at: Path) -> str:
    done = subprocess.run([sys.executable, "-c", script], cwd=at, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# PyTorch's answers are replaced; that the library itself can be loaded needs neither a GPU nor a driver.
AS_IF_THERE_WERE_A_GPU = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
torch.cuda.get_device_capability = lambda i: [(9, 0), {capability}][i]
torch.cuda.get_device_name = lambda i: ["NVIDIA H200", "Some GPU"][i]
from fasttransfer.ops import native
print(native.why_not())
where = native.operators()
print(set(map(where.get, where.keys() - native.CPU_ONLY)))
print(set(map(where.get, native.CPU_ONLY)))
"""


@needs_gpu_library
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_there_is_a_gpu_its_library_has_every_operator(tmp_path: Path) -> None:
    said = run_python(AS_IF_THERE_WERE_A_GPU.format(capability=(8, 6)), tmp_path)
    assert said.splitlines() == ["", str({"native on the CPU and CUDA"}), str({"native on the CPU"})]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_too_old_is_named(tmp_path: Path) -> None:
    said = run_python(AS_IF_THERE_WERE_A_GPU.format(capability=(7, 5)), tmp_path).splitlines()
    assert said[0].startswith("Some GPU has compute capability 7.5, the native library for GPUs needs 8.0 or newer")
    assert said[1] == str({"native on the CPU, PyTorch elsewhere"})


@pytest.mark.gpu
def test_the_library_for_gpus_is_loaded() -> None:
    where = native.operators()
    assert {where[name] for name in where.keys() - native.CPU_ONLY} == {"native on the CPU and CUDA"}


def test_a_library_for_gpus_that_is_not_there(tmp_path: Path) -> None:
    said = native.load_library(tmp_path, "cuda")
    assert said.startswith("the native library for GPUs is not built, operators on GPUs run as plain PyTorch")
    assert "nvcc" in said


def test_where_operators_run() -> None:
    assert native._describe_kernels(cpu=True, cuda=True) == "native on the CPU and CUDA"
    assert native._describe_kernels(cpu=True, cuda=False) == "native on the CPU, PyTorch elsewhere"
    assert native._describe_kernels(cpu=True, cuda=False, only_cpu=True) == "native on the CPU"
    assert native._describe_kernels(cpu=False, cuda=True) == "native on CUDA, PyTorch elsewhere"
    assert native._describe_kernels(cpu=False, cuda=False) == "PyTorch"


WITHOUT_LIBRARY = """
import torch
from fasttransfer.ops import native
from fasttransfer.ops._dropout import dropout
assert not native.load()
assert "is not built" in native.why_not()
assert native.operators()["dropout"] == "PyTorch"
x = torch.arange(1.0, 1002.0, requires_grad=True)
y = dropout(x, 2**64 - 3, torch.tensor(5), 0.3)
y.sum().backward()
torch.save([y.detach(), x.grad], "without.pt")
"""


def test_everything_runs_without_the_library(tmp_path: Path) -> None:
    """The package, copied without its library, gives the same bits and says why it is slow."""
    package = tmp_path / "fasttransfer"
    shutil.copytree(Path(fasttransfer.__file__).parent, package, ignore=shutil.ignore_patterns("_native_*"))
    run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{WITHOUT_LIBRARY}", tmp_path)
    without, gradient = torch.load(tmp_path / "without.pt")

    x = torch.arange(1.0, 1002.0)
    assert torch.equal(without, torch.ops.fasttransfer.dropout(x, -3, torch.tensor(5), 0.3))
    assert torch.equal(gradient, torch.ops.fasttransfer.dropout(torch.ones(1001), -3, torch.tensor(5), 0.3))
