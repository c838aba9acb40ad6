"""A training step of the base network: both geometries, both precisions, one thread, as a grid's worker runs it.

What decides `fasttransfer.machine.precision_for` on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fasttransfer import ops, randomness
from fasttransfer.geometry import GEOMETRIES
from fasttransfer.net import CaffeNet, Drop, initial_weights

BATCH = {"caffenet": 16, "caffenet-mini": 32}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("geometry", BATCH)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step(benchmark: Any, measure: Callable[..., None], geometry: str, precision: str) -> None:
    benchmark.group = f"{geometry}, batch {BATCH[geometry]}, 500 classes"
    sizes = GEOMETRIES[geometry]
    net = CaffeNet(sizes, 500)
    net.load(initial_weights(sizes, 500, "he", lambda stage: randomness.key(0, "bench-weights", stage)))
    pictures = torch.randn(BATCH[geometry], *sizes.cut_shape(0)).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(500, (BATCH[geometry],))
    weights = list(net.named_weights().values())
    velocities = [torch.zeros_like(w) for w in weights]
    drop = Drop({7: 1, 8: 2}, 0, 0.5)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(net(pictures, drop=drop).float(), labels)
        gradients = torch.autograd.grad(loss, weights)
        rates = [1e-4] * len(weights)
        ops.sgd_step(weights, velocities, gradients, lr=rates, momentum=0.9, decay=rates)

    measure(step)
    benchmark.extra_info["pictures a second"] = BATCH[geometry] / benchmark.stats.stats.median
