"""What a bug report needs, and what a study records of the machine it ran on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import fasttransfer
from fasttransfer import native
from fasttransfer.files import cache_folder

# Extensions that decide which kernels run and how fast, in Linux's words.
_EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
_PACKAGES = {"torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "DALI": "nvidia-dali"}


def collect() -> dict[str, str]:
    """Facts about this program and machine, in the order they are read best."""
    facts = {
        "fasttransfer": fasttransfer.__version__,
        "commit": _commit(Path(__file__).resolve().parents[1]),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "processor": processor(),
        "instructions": " ".join(name for name in _EXTENSIONS if name in instructions()) or "unknown",
        "cores": str(cores()),
        "memory": _memory(),
    }
    facts |= {name: version(package) for name, package in _PACKAGES.items()}
    facts["cuda"] = _cuda()
    facts["native library"] = native.why_not() or "loaded"
    facts["operators"] = "; ".join(f"{name}: {where}" for name, where in native.operators().items())
    facts["cache"] = str(cache_folder())
    facts["free disk"] = _free_disk(cache_folder())
    return facts


def measured_on() -> dict[str, str]:
    """The facts that a committed measurement is described with: not those that say nothing about speed."""
    return {name: fact for name, fact in collect().items() if name not in ("cache", "commit", "free disk")}


def cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes of memory that can be had without swapping, page cache included; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def processor() -> str:
    """The model of the processor, as far as the system says."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def instructions() -> tuple[str, ...]:
    """The extensions of the processor in Linux's words, e.g. "avx512_bf16"; empty where they are not known."""
    return tuple((_cpuinfo().get("flags") or _cpuinfo().get("features") or "").split())


def version(package: str) -> str:
    """The version of an installed package; DALI's name ends in the CUDA version that it was built for."""
    for name in (package, f"{package}-cuda120", f"{package}-cuda130"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def _commit(root: Path) -> str:
    """The commit of the checkout at `root`, marked where files differ from it."""
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


@cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor, by lower-case name; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return "unknown"
    return _gib(total)


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "no device"
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{d.name} ({_gib(d.total_memory)}, sm_{d.major}{d.minor})" for d in devices)
    return f"{torch.version.cuda}: {names}"


def _free_disk(folder: Path) -> str:
    """Room where `folder` is, or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return _gib(shutil.disk_usage(folder).free)
    except OSError:
        return "unknown"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
