"""Dropout before stage 7 of the paper's network: the native operator against its reference and PyTorch's own.

PyTorch's own draws from a generator: it must store its mask and cannot be repeated for a given step. It is
here to show what that saves or costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer import native, randomness
from fasttransfer._dropout import dropout, dropout_reference

KEY = randomness.key(0, "bench-dropout")

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "native": lambda x: dropout(x, KEY, 1, 0.5),
    "reference": lambda x: dropout_reference(x, KEY, 1, 0.5),
    "compiled reference": torch.compile(lambda x: dropout_reference(x, KEY, 1, 0.5)),
    "torch dropout": lambda x: F.dropout(x, 0.5),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("pass_", ["forward", "forward and backward"])
def test_dropout(benchmark: Any, measure: Callable[..., None], case: str, dtype: torch.dtype, pass_: str) -> None:
    assert native.available(), native.why_not()
    benchmark.group = f"256 x 9216 {str(dtype).removeprefix('torch.')}, {pass_}"
    run = CASES[case]
    x = torch.randn(256, 9216).to(dtype)
    if pass_ == "forward":
        measure(run, x)
        return
    x.requires_grad_()
    gradient = torch.randn_like(x)
    measure(lambda: torch.autograd.grad(run(x), x, gradient))
