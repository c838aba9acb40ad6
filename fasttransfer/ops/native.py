"""The native libraries: whether they are there, why not, and which operators run in them.

There is one for CPUs and one for GPUs, which is loaded where PyTorch sees a GPU. Every operator exists in
`torch.ops.fasttransfer` either way: where a library is missing, or is an old build that lacks one, the schema is
defined here and the reference registered beside its Python face runs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

# The lines of csrc/schemas.cpp.
SCHEMAS = {
    "augment": (
        "(Tensor[] shards, Tensor rows, Tensor mean, Tensor top, Tensor left, Tensor mirror, int "
        "crop, int block, int side, float scale, ScalarType dtype) -> Tensor"
    ),
    "conv_relu_pool_lrn": "(Tensor x, Tensor weight, Tensor bias, int stride, int padding, int groups) -> Tensor",
    "dropout": "(Tensor x, SymInt key, Tensor at, float p) -> Tensor",
    "pack_features": "(Tensor x) -> (Tensor mask, Tensor values, Tensor offsets)",
    "relu_pool": "(Tensor x, Tensor bias, bool keep) -> (Tensor y, Tensor argmax)",
    "relu_pool_backward": (
        "(Tensor gradient, Tensor argmax, SymInt height, SymInt width) -> (Tensor dx, Tensor dbias)"
    ),
    "relu_pool_lrn": "(Tensor x, Tensor bias, bool keep) -> (Tensor y, Tensor pooled, Tensor argmax)",
    "relu_pool_lrn_backward": (
        "(Tensor gradient, Tensor pooled, Tensor argmax, SymInt height, SymInt width) -> (Tensor dx, Tensor dbias)"
    ),
    "resize": "(Tensor image, int size, int top, int left, int height, int width) -> Tensor",
    "sgd_step": (
        "(Tensor(a!)[] weights, Tensor(b!)[] velocities, Tensor[] gradients, Tensor(c!)[] copies, "
        "Tensor lr, float momentum, float[] lr_scale, float[] decay) -> ()"
    ),
    "sparse_conv_backward": (
        "(Tensor gradient, Tensor x, Tensor weight, int stride, int padding, int groups, bool input) -> (Tensor dx, "
        "Tensor dweight)"
    ),
    "unpack_features": "(Tensor mask, Tensor values, Tensor offsets, Tensor rows, SymInt elements) -> Tensor",
}

# What has no kernel for GPUs, and needs none.
CPU_ONLY = {"resize", "sparse_conv_backward"}

_NAMES = {"cpu": "the native library", "cuda": "the native library for GPUs"}
_RUN_PLAIN = {"cpu": "run as plain PyTorch", "cuda": "on GPUs run as plain PyTorch"}
_OLDEST_GPU = (8, 0)  # the first compute capability with bfloat16

_HOW_TO_BUILD = "build it in the source tree with a C++ compiler and pip install --no-build-isolation --editable ."

# What loaders say of a file that was made for another system or processor.
_FOREIGN = ("invalid elf header", "wrong elf class", "mach-o", "incompatible architecture", "valid win32")


def load() -> bool:
    """Loads the libraries that this machine can use, on the first call; True where they have every operator."""
    return not _load()


def why_not() -> str:
    """Why operators run as plain PyTorch, on the CPU or on a GPU that is there, with what to do; empty if none does."""
    return _load()


def operators() -> dict[str, str]:
    """Every operator and where it runs, e.g. `{"dropout": "native on the CPU and CUDA"}`."""
    load()
    return {
        name: _where(_has_kernel(name, "CPU"), _has_kernel(name, "CUDA"), only_cpu=name in CPU_ONLY) for name in SCHEMAS
    }


def _where(cpu: bool, cuda: bool, *, only_cpu: bool = False) -> str:
    native = " and ".join(device for device, is_native in (("the CPU", cpu), ("CUDA", cuda)) if is_native)
    if not native:
        return "PyTorch"
    return f"native on {native}" if cpu and (cuda or only_cpu) else f"native on {native}, PyTorch elsewhere"


@cache
def _load() -> str:
    """Loads; returns why something is missing, or an empty string."""
    folder = Path(__file__).resolve().parent
    reason = load_library(folder) or _lacks("cpu")
    for name in SCHEMAS:
        if not hasattr(torch.ops.fasttransfer, name):
            torch.library.define(f"fasttransfer::{name}", SCHEMAS[name])
    if torch.cuda.is_available():
        # Both may be missing for the same reason: the first one says it.
        gpu_reason = too_old() or load_library(folder, "cuda") or _lacks("cuda")
        reason = reason or gpu_reason
    return reason


def _lacks(device: str) -> str:
    wanted = SCHEMAS if device == "cpu" else SCHEMAS.keys() - CPU_ONLY
    missing = sorted(name for name in wanted if not _has_kernel(name, device.upper()))
    if not missing:
        return ""
    return f"{_NAMES[device]} is older than this source and lacks {', '.join(missing)}: {_HOW_TO_BUILD}"


def _has_kernel(name: str, key: str) -> bool:
    operator = f"fasttransfer::{name}"
    return torch._C._dispatch_has_kernel(operator) and torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)


def too_old() -> str:
    """Names a GPU that the library was not built for; empty where there is none."""
    for i in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(i)
        if capability < _OLDEST_GPU:
            return (
                f"{torch.cuda.get_device_name(i)} has compute capability {_dotted(capability)}, {_NAMES['cuda']} needs "
                f"{_dotted(_OLDEST_GPU)} or newer: operators on GPUs run as plain PyTorch"
            )
    return ""


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def load_library(folder: Path, device: str = "cpu") -> str:
    """Loads the library for `device` that lies in `folder`; returns why that was not possible, or an empty string."""
    found = sorted(folder.glob(f"_native_{device}*"))
    if not found:
        how = _HOW_TO_BUILD if device == "cpu" else f"{_HOW_TO_BUILD}, where nvcc is on PATH"
        return f"{_NAMES[device]} is not built, operators {_RUN_PLAIN[device]}: {how}"
    library = found[0]
    try:
        torch.ops.load_library(library)
    except OSError as error:
        said = str(error.__cause__ or error)
        # glibc says of a file for another processor, which is there, that it cannot be found.
        foreign = f"{library}: cannot open shared object file" in said
        if foreign or any(phrase in said.lower() for phrase in _FOREIGN):
            return f"{library} was built for another platform, operators {_RUN_PLAIN[device]}: {_HOW_TO_BUILD}"
        reason = f"does not load under PyTorch {torch.__version__} ({said})"
        return f"{library} {reason}, operators {_RUN_PLAIN[device]}: {_HOW_TO_BUILD}"
    return ""
