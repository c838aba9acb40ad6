"""The native library: whether it is there, why not, and which operators run in it.

Every operator exists in `torch.ops.fasttransfer` either way: where the library is missing, or is an old build
that lacks one, the schema is defined here and the reference registered beside its Python face runs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

# The lines of csrc/schemas.cpp.
SCHEMAS = {
    "dropout": "(Tensor x, SymInt key, SymInt at, float p) -> Tensor",
}

_HOW_TO_BUILD = "build it in the source tree with a C++ compiler and pip install --no-build-isolation --editable ."

# What loaders say of a file that was made for another system or processor.
_FOREIGN = ("invalid elf header", "wrong elf class", "mach-o", "incompatible architecture", "valid win32")


def load() -> bool:
    """Loads the library on the first call; True where it is loaded and has every operator."""
    return not _load()[0]


def available() -> bool:
    """Whether the library is loaded and has every operator."""
    return load()


def why_not() -> str:
    """Why operators run as plain PyTorch, with what to do; empty where the library is loaded."""
    return _load()[0]


def operators() -> dict[str, str]:
    """Every operator and where it runs, e.g. `{"dropout": "native on the CPU, PyTorch elsewhere"}`."""
    native = _load()[1]
    return {name: "native on the CPU, PyTorch elsewhere" if name in native else "PyTorch" for name in SCHEMAS}


@cache
def _load() -> tuple[str, frozenset[str]]:
    """(why something is missing or "", the operators that the library has)."""
    reason = load_library(Path(__file__).resolve().parent)
    native = frozenset(name for name in SCHEMAS if hasattr(torch.ops.fasttransfer, name))
    missing = [name for name in SCHEMAS if name not in native]
    for name in missing:
        torch.library.define(f"fasttransfer::{name}", SCHEMAS[name])
    if missing and not reason:
        reason = f"the native library is older than this source and lacks {', '.join(missing)}: {_HOW_TO_BUILD}"
    return reason, native


def load_library(folder: Path) -> str:
    """Loads the library that lies in `folder`; returns why that was not possible, or an empty string."""
    found = sorted(folder.glob("_native_cpu*"))
    if not found:
        return f"the native library is not built, operators run as plain PyTorch: {_HOW_TO_BUILD}"
    library = found[0]
    try:
        torch.ops.load_library(library)
    except OSError as error:
        said = str(error.__cause__ or error)
        # glibc says of a file for another processor, which is there, that it cannot be found.
        foreign = f"{library}: cannot open shared object file" in said
        if foreign or any(phrase in said.lower() for phrase in _FOREIGN):
            return f"{library} was built for another platform, operators run as plain PyTorch: {_HOW_TO_BUILD}"
        reason = f"does not load under PyTorch {torch.__version__} ({said})"
        return f"{library} {reason}, operators run as plain PyTorch: {_HOW_TO_BUILD}"
    return ""
