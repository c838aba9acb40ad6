"""Facts about this machine: processor, cores, memory, and the versions of installed packages."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from fasttransfer.core import cgroups
from fasttransfer.core.errors import InputError

# FASTTRANSFER_ISA -> the beginnings of the names of extensions that it holds back; see csrc/cpu/dispatch.h.
_BEYOND = {"portable": ("avx", "amx", "fma", "bmi"), "avx2": ("avx512", "avx10", "amx"), "avx512": ()}


def cores() -> int:
    """Return the number of cores that this process may use, by its affinity and the quota of its container."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(here, cgroups.cores() or here)


def free_memory() -> int | None:
    """Return the bytes of memory available without swapping, page cache included; None if the system does not say.

    It is what the machine has and what the limits of this process's container leave, whichever is less.
    """
    known = [cgroups.free_memory()]
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                known.append(int(line.split()[1]) * 1024)
    return min((each for each in known if each is not None), default=None)


def processor() -> str:
    """Return the model of the processor, as far as the system says."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def instructions() -> tuple[str, ...]:
    """Return the processor's extensions by Linux's names, e.g. "avx512_bf16"; empty if they are unknown.

    Extensions that FASTTRANSFER_ISA holds back are left out, so that every choice is that of a lesser processor.

    Raises:
        InputError: FASTTRANSFER_ISA has an unknown value.
    """
    isa = os.environ.get("FASTTRANSFER_ISA", "")
    if isa and isa not in _BEYOND:
        raise InputError(f"FASTTRANSFER_ISA={isa}: choose among {', '.join(_BEYOND)}")
    known = (_cpuinfo().get("flags") or _cpuinfo().get("features") or "").split()
    return tuple(name for name in known if not name.startswith(_BEYOND.get(isa, ())))


def version(package: str) -> str:
    """Return the version of an installed package, also of one whose name ends in a CUDA version, as DALI's does."""
    for name in (package, f"{package}-cuda120", f"{package}-cuda130"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


@cache
def _cpuinfo() -> dict[str, str]:
    """Return the first processor's fields in /proc/cpuinfo, by lower-case name; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    return fields
