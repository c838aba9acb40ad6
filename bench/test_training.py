"""The variants of `fasttransfer bench step`, and a step as a grid's worker runs it: one thread, either precision.

The latter is what decides `fasttransfer.networks.inputs.choose_precision` on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fasttransfer.bench import training
from fasttransfer.networks.geometry import GEOMETRIES

BATCH = {"caffenet": 16, "caffenet-mini": 32}
CPU = torch.device("cpu")


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("geometry", BATCH)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_of_a_worker(benchmark: Any, measure: Callable[..., None], geometry: str, precision: str) -> None:
    benchmark.group = f"{geometry}, batch {BATCH[geometry]}, one thread"
    measure(training.fast(GEOMETRIES[geometry], BATCH[geometry], precision, CPU), 0)
    benchmark.extra_info["images per second"] = BATCH[geometry] / benchmark.stats.stats.median


@pytest.mark.parametrize("geometry", BATCH)
@pytest.mark.parametrize("variant", training.variants(GEOMETRIES["caffenet-mini"], 1, CPU))
def test_step(benchmark: Any, measure: Callable[..., None], geometry: str, variant: str) -> None:
    benchmark.group = f"{geometry}, batch {BATCH[geometry]}, all cores"
    measure(training.variants(GEOMETRIES[geometry], BATCH[geometry], CPU)[variant], 0)
    benchmark.extra_info["images per second"] = BATCH[geometry] / benchmark.stats.stats.median
