"""Builds the native libraries and says which packages there are; everything else stands in pyproject.toml.

The library for CPUs is always built. The one for GPUs is built where there are nvcc and a PyTorch for CUDA, whether or
not there is a GPU; FASTTRANSFER_CUDA=0 in the environment leaves it out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

import torch
from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent


def cuda_toolkit() -> Path | None:
    """The toolkit that nvcc is part of; None where there is none, or no use for it."""
    if os.environ.get("FASTTRANSFER_CUDA") == "0" or torch.version.cuda is None or sys.platform != "linux":
        return None
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{named}/bin" if named else None)
    if nvcc is None:
        return None
    # What is found may be a link or a script; nvcc itself knows where it lies.
    steps = subprocess.run([nvcc, "--dryrun", "-c", "any.cu"], capture_output=True, text=True).stderr
    found = re.search(r"^#\$ _HERE_=(.+)$", steps, re.MULTILINE)
    return (Path(found[1]) if found else Path(nvcc).resolve().parent).parent


TOOLKIT = cuda_toolkit()
if TOOLKIT is not None:
    os.environ["CUDA_HOME"] = str(TOOLKIT)  # read by the next import

from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths  # noqa: E402

# One build serves every PyTorch from 2.11 on: only the stable ABI is used, and only what it had in 2.10.
STABLE_ABI = [("TORCH_STABLE_ONLY", None), ("TORCH_TARGET_VERSION", "0x020a000000000000")]

# No -std=: PyTorch passes the standard that its own headers need.
if sys.platform == "win32":
    FLAGS = ["/O2"]
else:
    # Messages name a source file by its path in the tree, not on the machine that built it.
    FLAGS = ["-O3", "-fvisibility=hidden", "-Wall", "-Wextra", f"-ffile-prefix-map={ROOT}/="]

cpu = CppExtension(
    "fasttransfer.ops._native_cpu",
    sources=sorted(glob("csrc/cpu/*.cpp")),
    depends=sorted([*glob("csrc/*.h"), *glob("csrc/cpu/*.h"), *glob("csrc/math/*.h")]),
    include_dirs=[str(ROOT / "csrc")],  # ninja runs elsewhere
    define_macros=STABLE_ABI,
    extra_compile_args=FLAGS,
    py_limited_api=True,
)

extensions = [cpu]

# A Python module, unlike the others: pybind11 comes with PyTorch, whose libraries it does not use. Shards are mapped
# into memory as POSIX has it.
if sys.platform != "win32":
    extensions.append(
        Extension(
            "fasttransfer.features._shards",
            sources=sorted(glob("csrc/shards/*.cpp")),
            depends=sorted(
                [
                    *glob("csrc/shards/*.h"),
                    *glob("csrc/math/*.h"),
                    *glob("csrc/cpu/*.h"),
                    *glob("csrc/third_party/xxhash/*.h"),
                ]
            ),
            include_dirs=[str(ROOT / "csrc"), *include_paths("cpu")],
            extra_compile_args=[*FLAGS, "-pthread"],
            extra_link_args=["-pthread"],
            language="c++",
        )
    )

# Machine code for the A100 and the H100 and H200, and PTX, which the driver translates for what comes after them.
GPUS = ["arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]"]

if TOOLKIT is not None:
    # CUDA's runtime is linked in: nothing of the toolkit is needed where the library runs.
    runtime = next(TOOLKIT.glob("**/libcudart_static.a"), "-lcudart_static")
    cuda = CppExtension(
        "fasttransfer.ops._native_cuda",
        sources=sorted(glob("csrc/cuda/*.cu")),
        depends=sorted([*glob("csrc/*.h"), *glob("csrc/cuda/*.cuh"), *glob("csrc/cuda/*.h"), *glob("csrc/math/*.h")]),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[*STABLE_ABI, ("USE_CUDA", None)],
        extra_compile_args={"nvcc": ["-O3", *(f"-gencode={gpu}" for gpu in GPUS), "-Xcompiler", ",".join(FLAGS)]},
        libraries=["torch_cuda"],
        extra_link_args=[str(runtime), "-ldl", "-lpthread", "-lrt", "-Wl,--exclude-libs,ALL"],
        py_limited_api=True,
    )
    extensions.append(cuda)


class Build(BuildExtension.with_options(no_python_abi_suffix=True)):  # type: ignore[misc]
    """The operators' libraries hold no Python at all: their names need not say which. That of the shards does."""

    def get_ext_filename(self, ext_name: str) -> str:
        name = super().get_ext_filename(ext_name)
        if not ext_name.endswith("_shards"):
            return name
        return str(Path(name).with_suffix("")) + sysconfig.get_config_var("EXT_SUFFIX")

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except RuntimeError as error:
            if TOOLKIT is None:
                raise
            print(
                f"nvcc of {TOOLKIT} was used for the library for GPUs: FASTTRANSFER_CUDA=0 in the environment leaves "
                "it out, CUDA_HOME chooses another toolkit.",
                file=sys.stderr,
            )
            raise SystemExit(1) from error


packages = find_packages(include=["fasttransfer", "fasttransfer.*"])
# These stand beside fasttransfer/ and are imported from inside it. Of the benchmarks, users get what
# `fasttransfer bench` runs.
BESIDE = {"fasttransfer.pipelines": "pipelines", "fasttransfer.bench": "bench/suites"}
for package, folder in BESIDE.items():
    packages += [package, *(f"{package}.{name}" for name in find_packages(folder))]

setup(
    packages=packages,
    package_dir=BESIDE,
    ext_modules=extensions,
    cmdclass={"build_ext": Build},
)
