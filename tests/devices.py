"""The devices of the operators' tests; conftest.py skips those marked `gpu` on machines without one."""

from __future__ import annotations

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

# Devices with the types their kernels know: float64, which gradients are checked in, is for the CPU alone.
TYPES_ON = [
    *(pytest.param("cpu", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)),
    *(pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in (torch.float32, torch.bfloat16)),
]
