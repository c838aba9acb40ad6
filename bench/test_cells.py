"""A training step of a cell that starts at each cut, and the frozen stages before the cut.

The whole study is projected from these rates (bench/projection.py). The paper's logs have the same curve: images per
second on a K20 with the first 0 to 7 layers frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttransfer.bench import step
from fasttransfer.bench.harness import Call, emulates
from fasttransfer.networks.architecture import StagedNetwork, StepDraws
from fasttransfer.networks.caffenet import CAFFENET, CaffeNetArchitecture
from fasttransfer.networks.geometry import DROPOUT_STAGES, STAGES
from fasttransfer.study.cells import TREATMENTS, study_cells
from fasttransfer.training.cuda_graph import RecordedGraph

TRAIN, FORWARD = "train from cut {}", "forward to cut {}"
LARGER = (512, 1024, 2048)  # images per step, to see what a GPU gains from more than the paper's 256


def calls(
    batch: int, precision: str, device: torch.device, network: CaffeNetArchitecture = CAFFENET
) -> dict[str, Call]:
    """Return `TRAIN` for cuts 0 to 7, a step of the stages behind, and `FORWARD` for cuts 1 to 8.

    Inputs are features as the stages before make them of random images.
    """
    images = step.random_images(network, batch, precision, device)
    found: dict[str, Call] = {}
    frozen = step.trainer_of(network, precision, device).net
    for n in range(STAGES):
        with torch.no_grad():
            x = frozen(images, stop=n)
        trainer = step.trainer_of(network, precision, device, start=n)
        found[TRAIN.format(n)] = step.stepping(trainer, x, recorded=device.type == "cuda")
    for n in range(1, STAGES + 1):
        found[FORWARD.format(n)] = _forward(frozen, images, n)
    return found


def _forward(net: StagedNetwork, images: Tensor, stop: int) -> Call:
    @torch.no_grad()
    def run(given: Mapping[str, Tensor]) -> None:
        net(given["images"], stop=stop)

    recorded = RecordedGraph(run) if images.is_cuda else run
    return lambda i: recorded({"images": images})


def whole_cohort(
    batch: int, precision: str, device: torch.device, network: CaffeNetArchitecture = CAFFENET
) -> tuple[int, Call]:
    """Return the number of cells, and one step of a base and all copies of its task behind shared frozen stages.

    The paper's network takes about 20 GB.
    """
    images = step.random_images(network, batch, precision, device)
    every = [cell for cell in study_cells("B", TREATMENTS, network.cuts, [0], STAGES) if cell.target == "B"]
    sources = {cell.source: step.trainer_of(network, precision, device).net for cell in every if cell.frozen}
    trainers = {cell: step.trainer_of(network, precision, device, start=cell.first_trained) for cell in every}
    labels = torch.randint(step.OUTPUTS, (batch,), device=device)
    at, lr = torch.zeros((), dtype=torch.int64, device=device), torch.tensor(1e-4, device=device)
    draws = StepDraws({stage: stage for stage in DROPOUT_STAGES}, at, step.DROPOUT)

    def train(given: Mapping[str, Tensor]) -> None:
        at.add_(1)
        cuts: dict[tuple[str | None, int], Tensor] = {}
        for source, net in sources.items():
            x = given["images"]
            for n in network.cuts:
                with torch.no_grad():
                    x = net(x, start=n - 1, stop=n, draws=draws)
                cuts[source, n] = x
        for cell, trainer in trainers.items():
            trainer.step(cuts[cell.source, cell.n] if cell.frozen else given["images"], labels, draws, lr)

    run = RecordedGraph(train) if device.type == "cuda" else train
    return len(every), lambda i: run({"images": images})


def test_cells(compare: Callable[..., Any], device: torch.device, quick: bool) -> None:
    batch = 256 if device.type == "cuda" else 16 if quick else 64
    precision = "fp32" if emulates(device, torch.bfloat16) else "bf16"
    compare(calls(batch, precision, device), sample=0.1, work=batch, precision=precision)


@pytest.mark.gpu
def test_whole_cohort(compare: Callable[..., Any], device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("it takes 20 GB, and test_cells has all rates")
    cells, call = whole_cohort(256, "bf16", device)
    compare({f"{cells} cells": call}, sample=0.1, work=256 * cells)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", LARGER)
def test_larger_batch(compare: Callable[..., Any], device: torch.device, batch: int) -> None:
    if device.type != "cuda":
        pytest.skip("a CPU gains nothing from larger batches")
    compare({"step": step.fast(CAFFENET, batch, "bf16", device)}, sample=0.1, work=batch)
