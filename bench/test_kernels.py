"""The cases of `fasttransfer bench kernels`, one benchmark a case and variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fasttransfer.bench import kernels


@pytest.mark.parametrize(
    "variant", ["native", "eager", "compiled", "convolution + relu_pool_lrn", "PyTorch's fused", "Pillow"]
)
@pytest.mark.parametrize("case", kernels.cases(), ids=lambda case: case.label)
def test_kernel(benchmark: Any, measure: Callable[..., None], case: kernels.Case, variant: str) -> None:
    calls = case.variants(torch.device("cpu"))
    if variant not in calls:
        pytest.skip("this operator has no such variant")
    benchmark.group = case.label
    measure(calls[variant], 0)
    benchmark.extra_info["GB/s of least traffic"] = case.least_bytes / benchmark.stats.stats.median / 1e9
