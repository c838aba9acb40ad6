"""Choices by the machine: precision, the form of images, and the memory of freed tensors."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from fasttransfer.core import machine
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI
from fasttransfer.networks.precision import choose_precision


@pytest.mark.parametrize(
    ("instructions", "precision"),
    [((), "fp32"), (("avx2", "avx512f"), "fp32"), (("avx512f", "avx512_bf16"), "bf16"), (("amx_bf16",), "bf16")],
)
def test_precision_is_what_the_processor_multiplies(
    instructions: tuple[str, ...], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "instructions", lambda: instructions)
    assert choose_precision(None, "cpu", CAFFENET.crop) == precision
    for network in (CAFFENET, CAFFENET_MINI):
        assert choose_precision("fp32", "cpu", network.crop) == "fp32"
        assert choose_precision("bf16", "cpu", network.crop) == "bf16"
    assert choose_precision(None, "cpu", CAFFENET_MINI.crop) == "fp32"


def test_images_come_in_blocks_to_a_gpu_and_as_they_are_to_a_cpu() -> None:
    bf16, fp32 = torch.bfloat16, torch.float32
    assert CAFFENET.input_form("cpu", bf16) == {"block": 1, "side": 227, "dtype": bf16}
    assert CAFFENET.input_form("cuda", fp32) == {"block": 4, "side": 57, "dtype": fp32}
    assert CAFFENET_MINI.input_form("cuda", bf16) == {"block": 3, "side": 20, "dtype": bf16}


FAULTS = """
import resource, sys, torch
from fasttransfer.core import devices
if sys.argv[1] == "keep":
    devices.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.zeros(16 << 20)  # 64 MiB, freed at once
before = faults()
for _ in range(8):
    torch.zeros(16 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_freed_memory_is_reused() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "default")
    }
    assert faults["default"] > 1000
    assert faults["keep"] < faults["default"] / 2  # the heap may still settle
