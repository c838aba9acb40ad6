"""Facts about the program and the machine, for bug reports and the records of a study."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

import fasttransfer
from fasttransfer.core import cgroups, machine
from fasttransfer.core.files import cache_folder
from fasttransfer.ops import native

# Instruction sets that decide which kernels run and how fast, in Linux's names.
_EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
_PACKAGES = {"torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "DALI": "nvidia-dali"}


def describe_environment() -> dict[str, str]:
    """Return facts about this program and machine as name -> text, in the order to show them."""
    facts = {
        "fasttransfer": fasttransfer.__version__,
        "commit": _commit(Path(__file__).resolve().parents[2]),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "processor": machine.processor(),
        "instructions": _instructions(),
        "cores": str(machine.cores()),
        "memory": _memory(),
    }
    facts |= {name: machine.version(package) for name, package in _PACKAGES.items()}
    facts["cuda"] = _cuda()
    facts["native library"] = native.why_not() or f"loaded, for {native.isa()}"
    facts["operators"] = "; ".join(f"{name}: {where}" for name, where in native.operators().items())
    facts["cache"] = str(cache_folder())
    facts["free disk"] = _free_disk(cache_folder())
    return facts


def describe_machine() -> dict[str, str]:
    """Return the facts to store beside a measurement: those that bear on speed."""
    return {name: fact for name, fact in describe_environment().items() if name not in ("cache", "commit", "free disk")}


def _instructions() -> str:
    """Return the extensions of the processor, without those that FASTTRANSFER_ISA holds back."""
    known = machine.instructions()
    names = " ".join(name for name in _EXTENSIONS if name in known) or ("none" if known else "unknown")
    isa = os.environ.get("FASTTRANSFER_ISA")
    return f"{names}, held back by FASTTRANSFER_ISA={isa}" if isa else names


def _commit(root: Path) -> str:
    """Return the commit of the checkout at `root`, marked if files differ from it."""
    if not (root / ".git").exists():
        return "not a checkout"
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit} with changes" if changed else commit


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return "unknown"
    limit = cgroups.memory_limit()
    return _gib(total) if limit is None or limit >= total else f"{_gib(limit)} of {_gib(total)}, a container's limit"


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "no device"
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{d.name} ({_gib(d.total_memory)}, sm_{d.major}{d.minor})" for d in devices)
    return f"{torch.version.cuda}: {names}"


def _free_disk(folder: Path) -> str:
    """Return the free space of the disk that `folder` is on, or would be."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return _gib(shutil.disk_usage(folder).free)
    except OSError:
        return "unknown"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
