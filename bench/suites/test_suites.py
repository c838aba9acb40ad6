"""The suites of `fasttransfer bench`: operators, step, feed, grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttransfer.bench import feed, grid, operators, step
from fasttransfer.bench.harness import Samples, copying, emulates, show
from fasttransfer.core import machine
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI, CaffeNetArchitecture

Compare = Callable[..., Samples]


@pytest.mark.parametrize("case", operators.cases(), ids=lambda case: case.label)
def test_operators(compare: Compare, device: torch.device, quick: bool, case: operators.Case) -> None:
    if why := case.why_not(device):
        pytest.skip(why)
    calls = {name: call for name, call in case.variants(device).items() if not (quick and name == "compiled")}
    calls["copy"] = copying(case.least_bytes, device)
    compare(calls, work=case.least_bytes, unit="bytes")


@pytest.mark.parametrize("network", [CAFFENET_MINI, CAFFENET], ids=lambda network: network.name)
def test_step(
    compare: Compare,
    device: torch.device,
    quick: bool,
    leave_out: Callable[[str], None],
    network: CaffeNetArchitecture,
) -> None:
    if emulates(device, torch.bfloat16):
        leave_out(f"step[{network.name}] in bf16: this processor emulates products in bfloat16")
    batch = 32 if network is CAFFENET_MINI else 32 if quick else 256 if device.type == "cuda" else 64
    calls = step.variants(network, batch, device, compiled=not quick)
    profile = step.profile(next(iter(calls.values())), device)
    compare(calls, sample=0.1, work=batch, outputs=step.OUTPUTS, profile=profile)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    with feed.scratch_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def source(request: pytest.FixtureRequest, folder: Path, quick: bool) -> feed.JpegSource:
    return feed.gather(request.config.getoption("data"), folder / "images", 64 if quick else 400)


@pytest.mark.parametrize("cores", sorted({1, machine.cores()}), ids=lambda count: f"{count} core{'s' * (count > 1)}")
@pytest.mark.parametrize("name", feed.STEPS)
def test_feed(
    compare: Compare, device: torch.device, quick: bool, source: feed.JpegSource, folder: Path, name: str, cores: int
) -> None:
    with feed.on_cores(cores):
        images, calls = feed.variants(name, source, folder, cores, device)
        sample = 0.0 if quick or name == "prepare" else 0.3
        lead = 4 * cores if name == "feed" else 0  # more batches than any of them makes ahead
        compare(calls, sample=sample, lead=lead, work=images, source=source.facts)


def test_grid(benchmark: Any, request: pytest.FixtureRequest, device: torch.device, quick: bool, folder: Path) -> None:
    option = request.config.getoption
    quick = quick or option("quick_grid")
    given = {name: option(name) for name in ("epochs", "classes")}
    plan = grid.plan_study(option("data"), folder, **given, device=device.type, quick=quick)
    study, limit = grid.describe(plan), grid.compute_limit(plan)
    benchmark.name, benchmark.group = "grid", "grid"
    print(f"grid: {study['networks']} networks of {max(study['steps'].values())} steps", flush=True)
    found, top1 = {}, {}
    found["fasttransfer"], top1["fasttransfer"] = benchmark.pedantic(grid.train_together, (plan, 0, folder))
    if not option("without_plain"):
        print("the same in plain PyTorch, and in fasttransfer with another seed", flush=True)
        found["plain PyTorch"], top1["plain PyTorch"] = grid.train_plainly(plan, folder)
        _, top1["other seed"] = grid.train_together(plan, 1, folder)
        benchmark.extra_info["agreement"] = grid.agreement(plan.cells(), *top1.values())
    for way, of_way in found.items():
        of_way["of_limit"] = {k: round(s / of_way["wall_seconds"], 4) for k, s in limit["seconds"][way].items()}
    seconds = {way: [of_way["wall_seconds"]] for way, of_way in found.items()}
    info = {"work": [study["images_trained"], "images"], "seconds": seconds, "study": study, "limit": limit}
    benchmark.extra_info.update(info | {"ways": found, "top1": top1})
    show(benchmark)
