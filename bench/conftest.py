"""What the benchmarks share: how results describe the machine, and how a case is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fasttransfer.core import devices
from fasttransfer.study import environment


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The machine in this project's words; the host's name stays out of what is committed."""
    machine_info.clear()
    machine_info.update(environment.describe_machine())
    machine_info["threads"] = str(torch.get_num_threads())


@pytest.fixture(autouse=True, scope="session")
def _memory() -> None:
    """As in a grid's workers."""
    devices.keep_freed_memory()


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """`measure(function, *arguments)`: after two warm-up calls, ten rounds of one call; the median counts."""

    def run(function: Callable[..., object], *arguments: object) -> None:
        benchmark.pedantic(function, args=arguments, rounds=10, warmup_rounds=2)

    return run
