"""The operators' schemas and the native libraries: loads them, and says which operators run natively or why none does.

There is one library for CPUs and one for GPUs, which is loaded where PyTorch sees a GPU. A library only registers
kernels for the schemas below, so every operator exists in `torch.ops.fasttransfer` either way: where a library is
missing, or is an old build that lacks a kernel, the reference registered beside the operator's Python function runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fasttransfer.core import machine

# The schema of every operator in `torch.ops.fasttransfer`.
#
# N images, C channels, H x W pixels, PH x PW the same after pooling, S the side of a stored image. Activations are
# (N, C, H, W) in channels-last memory. A key is 64 bits, passed as the signed number of the same bits. A value that
# changes from step to step is a tensor without dimensions, so that neither a compiled graph nor a recorded CUDA graph
# has to be made again.
SCHEMAS = {
    # shards: each (R_i, S, S, 3) uint8; rows, top, left: (N,) int64; mean: (S, S, 3) float32; mirror: (N,) bool
    # -> (N, 3 * block^2, side, side) of `dtype`
    "augment": (
        "(Tensor[] shards, Tensor rows, Tensor mean, Tensor top, Tensor left, Tensor mirror, int crop, int block, "
        "int side, float scale, ScalarType dtype) -> Tensor"
    ),
    # x: (N, C, H, W); weight: (K, C / groups, kernel, kernel); bias: (K,), all float32 -> y: (N, K, H', W')
    "conv_relu": "(Tensor x, Tensor weight, Tensor bias, int padding, int groups) -> Tensor",
    # gradient: like y -> dx: like x, without `input` it has no elements; dweight, dbias: like weight and bias
    "conv_relu_backward": (
        "(Tensor gradient, Tensor y, Tensor x, Tensor weight, int padding, int groups, bool input) "
        "-> (Tensor dx, Tensor dweight, Tensor dbias)"
    ),
    # x: (N, C, H, W); weight: (K, C / groups, kernel, kernel) of x's type; bias: (K,) float32 -> (N, K, PH, PW)
    "conv_relu_pool_lrn": "(Tensor x, Tensor weight, Tensor bias, int stride, int padding, int groups) -> Tensor",
    # x: any shape, contiguous; at: () int64 -> y: the same shape and type
    "dropout": "(Tensor x, SymInt key, Tensor at, float p) -> Tensor",
    # x: (N, E) bfloat16, contiguous -> mask: (N, ceil(E / 64) * 8) uint8, see csrc/math/bitmask.h; values: (K,)
    # bfloat16, the nonzero ones of all images; offsets: (N + 1,) int64, image i has values offsets[i] to offsets[i + 1]
    "pack_features": "(Tensor x) -> (Tensor mask, Tensor values, Tensor offsets)",
    # x: (N, C, H, W); bias: (C,) float32 -> y: (N, C, PH, PW); argmax: (N, PH, PW, ceil(C / 2)) uint8, channel 2i in
    # the low and 2i + 1 in the high half of byte i, see csrc/math/pool.h; without `keep` argmax has no elements
    "relu_pool": "(Tensor x, Tensor bias, bool keep) -> (Tensor y, Tensor argmax)",
    "relu_pool_backward": (
        "(Tensor gradient, Tensor argmax, SymInt height, SymInt width) -> (Tensor dx, Tensor dbias)"
    ),
    # Like relu_pool; pooled: (N, C, PH, PW), the values before normalisation; without `keep` it has no elements either
    "relu_pool_lrn": "(Tensor x, Tensor bias, bool keep) -> (Tensor y, Tensor pooled, Tensor argmax)",
    "relu_pool_lrn_backward": (
        "(Tensor gradient, Tensor pooled, Tensor argmax, SymInt height, SymInt width) -> (Tensor dx, Tensor dbias)"
    ),
    # image: (H, W, 3) uint8; the height x width part of it at (top, left) -> (size, size, 3) uint8
    "resize": "(Tensor image, int size, int top, int left, int height, int width) -> Tensor",
    # One tensor per parameter in each list, all of the same strides; weights, velocities: float32; gradients and
    # copies: float32 or bfloat16; copies may be an empty list; lr: () float32
    "sgd_step": (
        "(Tensor(a!)[] weights, Tensor(b!)[] velocities, Tensor[] gradients, Tensor(c!)[] copies, Tensor lr, "
        "float momentum, float[] lr_scale, float[] decay) -> ()"
    ),
    # gradient: (N, K, OH, OW); x: (N, C, H, W); weight: (K, C / groups, kernel, kernel), all of one type
    # -> dx: like x, without `input` it has no elements; dweight: like weight
    "sparse_conv_backward": (
        "(Tensor gradient, Tensor x, Tensor weight, int stride, int padding, int groups, bool input) "
        "-> (Tensor dx, Tensor dweight)"
    ),
    # The results of pack_features; rows: (M,) int64, the numbers of images -> (M, elements) bfloat16
    "unpack_features": "(Tensor mask, Tensor values, Tensor offsets, Tensor rows, SymInt elements) -> Tensor",
}

CPU_ONLY = {"conv_relu", "conv_relu_backward", "resize", "sparse_conv_backward"}
"""The operators that need no kernel for GPUs."""

_FOLDER = Path(__file__).resolve().parent
_NAMES = {"cpu": "the native library", "cuda": "the native library for GPUs"}
_RUN_PLAIN = {"cpu": "run as plain PyTorch", "cuda": "on GPUs run as plain PyTorch"}
_OLDEST_GPU = (8, 0)  # the first compute capability with bfloat16

_HOW_TO_BUILD = "build it in the source tree with a C++ compiler and pip install --no-build-isolation --editable ."

# Parts of a loader's messages about a file built for another system or processor.
_FOREIGN = ("invalid elf header", "wrong elf class", "mach-o", "incompatible architecture", "valid win32")


def load() -> bool:
    """Load the libraries that this machine can use, on the first call; return whether they have every operator."""
    return not _load()


def register(name: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an operator's reference, which runs where there is no native kernel, and its fake for compilers.

    A native kernel is registered for one device and has precedence over the reference, which is for all.
    """
    load()
    torch.library.impl(f"fasttransfer::{name}", "CompositeExplicitAutograd", reference)
    torch.library.register_fake(f"fasttransfer::{name}", fake)


def why_not() -> str:
    """Return why operators run as plain PyTorch, on the CPU or this machine's GPU, and what to do; "" if none does."""
    return _load()


def isa() -> str:
    """Return the instructions that native operators on the CPU use, see csrc/cpu/dispatch.h; "" if none is native."""
    if load_library(_FOLDER):
        return ""
    name = ctypes.CDLL(str(find_libraries(_FOLDER)[0])).fasttransfer_isa
    name.restype = ctypes.c_char_p
    return str(name().decode())


def find_faster_dtypes(bf16: str) -> frozenset[torch.dtype]:
    """Return the types in which an operator that multiplies is faster than PyTorch's convolutions on this processor.

    That was measured: float32 from AVX2 on, bfloat16 with the extension `bf16`, but not with AMX.
    """
    instructions = machine.instructions() if load() else ()
    is_faster = {
        torch.float32: "avx2" in instructions,
        torch.bfloat16: bf16 in instructions and "amx_bf16" not in instructions,
    }
    return frozenset(dtype for dtype, faster in is_faster.items() if faster)


def operators() -> dict[str, str]:
    """Return every operator and where it runs, e.g. `{"dropout": "native on the CPU and CUDA"}`."""
    load()
    return {
        name: _describe_kernels(_has_kernel(name, "CPU"), _has_kernel(name, "CUDA"), only_cpu=name in CPU_ONLY)
        for name in SCHEMAS
    }


def _describe_kernels(cpu: bool, cuda: bool, *, only_cpu: bool = False) -> str:
    native = " and ".join(device for device, is_native in (("the CPU", cpu), ("CUDA", cuda)) if is_native)
    if not native:
        return "PyTorch"
    return f"native on {native}" if cpu and (cuda or only_cpu) else f"native on {native}, PyTorch elsewhere"


@cache
def _load() -> str:
    """Load the libraries and define the operators; return why kernels are missing, or an empty string."""
    failure = load_library(_FOLDER)
    for name, schema in SCHEMAS.items():
        # Libraries built before the schemas moved here define their own; PyTorch refuses a second definition.
        if not hasattr(torch.ops.fasttransfer, name):
            torch.library.define(f"fasttransfer::{name}", schema)
    reason = failure or _name_missing_kernels("cpu")
    if torch.cuda.is_available():
        # Both may be missing for the same reason: report the first.
        gpu_reason = name_old_gpu() or load_library(_FOLDER, "cuda") or _name_missing_kernels("cuda")
        reason = reason or gpu_reason
    return reason


def _name_missing_kernels(device: str) -> str:
    """Return a sentence that names the operators without a native kernel, or an empty string."""
    names = SCHEMAS if device == "cpu" else SCHEMAS.keys() - CPU_ONLY
    missing = sorted(name for name in names if not _has_kernel(name, device.upper()))
    if not missing:
        return ""
    return f"{_NAMES[device]} is older than this source and lacks {', '.join(missing)}: {_HOW_TO_BUILD}"


def _has_kernel(name: str, key: str) -> bool:
    operator = f"fasttransfer::{name}"
    return torch._C._dispatch_has_kernel(operator) and torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)


def name_old_gpu() -> str:
    """Return a sentence that names a GPU too old for the library, or an empty string."""
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


def find_libraries(folder: Path, device: str = "cpu") -> list[Path]:
    """Return the files of the library for `device` in `folder`, at most one after a build."""
    return sorted(folder.glob(f"_native_{device}*"))


def load_library(folder: Path, device: str = "cpu") -> str:
    """Load the library for `device` in `folder`; return why that failed, or an empty string."""
    libraries = find_libraries(folder, device)
    if not libraries:
        how = _HOW_TO_BUILD if device == "cpu" else f"{_HOW_TO_BUILD}, where nvcc is on PATH"
        return f"{_NAMES[device]} is not built, operators {_RUN_PLAIN[device]}: {how}"
    library = libraries[0]
    try:
        torch.ops.load_library(library)
    except OSError as error:
        message = str(error.__cause__ or error)
        # glibc reports a file for another processor as missing.
        is_foreign = f"{library}: cannot open shared object file" in message
        if is_foreign or any(phrase in message.lower() for phrase in _FOREIGN):
            return f"{library} was built for another platform, operators {_RUN_PLAIN[device]}: {_HOW_TO_BUILD}"
        reason = f"does not load under PyTorch {torch.__version__} ({message})"
        return f"{library} {reason}, operators {_RUN_PLAIN[device]}: {_HOW_TO_BUILD}"
    return ""
