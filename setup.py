"""Builds the native library and says which packages there are; everything else stands in pyproject.toml."""

from __future__ import annotations

import sys
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).resolve().parent

# One build serves every PyTorch from 2.11 on: only the stable ABI is used, and only what it had in 2.10.
STABLE_ABI = [("TORCH_STABLE_ONLY", None), ("TORCH_TARGET_VERSION", "0x020a000000000000")]

# No -std=: PyTorch passes the standard that its own headers need.
if sys.platform == "win32":
    FLAGS = ["/O2"]
else:
    # Messages name a source file by its path in the tree, not on the machine that built it.
    FLAGS = ["-O3", "-fvisibility=hidden", "-Wall", "-Wextra", f"-ffile-prefix-map={ROOT}/="]

cpu = CppExtension(
    "fasttransfer._native_cpu",
    sources=sorted(["csrc/schemas.cpp", *glob("csrc/cpu/*.cpp")]),
    depends=sorted(glob("csrc/math/*.h")),
    include_dirs=[str(ROOT / "csrc")],  # ninja runs elsewhere
    define_macros=STABLE_ABI,
    extra_compile_args=FLAGS,
    py_limited_api=True,
)

packages = find_packages(include=["fasttransfer", "fasttransfer.*"])
packages += [
    "fasttransfer.pipelines",
    *(f"fasttransfer.pipelines.{name}" for name in find_packages("pipelines")),
]

setup(
    packages=packages,
    package_dir={"fasttransfer.pipelines": "pipelines"},
    ext_modules=[cpu],
    # The library holds no Python at all: neither its name nor the wheel's needs to say which Python.
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
