"""What a training step costs a cell that starts at each cut, and what the frozen stages before the cut cost.

From these rates the whole study is projected. The paper's logs have the same curve: images per second on a K20 with
the first 0 to 7 layers frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fasttransfer.bench import training
from fasttransfer.networks.caffenet import CaffeNet, StepDropout
from fasttransfer.networks.geometry import CAFFENET, DROPOUT_STAGES, STAGES, Geometry
from fasttransfer.study.cells import LAYERS, TREATMENTS, study_cells
from fasttransfer.training.cuda_graph import RecordedGraph

TRAIN, FORWARD = "train from cut {}", "forward to cut {}"

Call = Callable[[int], object]


def calls(batch: int, precision: str, device: torch.device, geometry: Geometry = CAFFENET) -> dict[str, Call]:
    """`TRAIN` for cuts 0 to 7: forward, backward and update of the stages behind. `FORWARD` for cuts 1 to 8.

    Inputs are features as the stages before make them of random images.
    """
    images = training.random_images(geometry, batch, precision, device)
    on_gpu = device.type == "cuda"
    found: dict[str, Call] = {}
    frozen = training.trainee_of(geometry, precision, device).net
    for n in range(STAGES):
        with torch.no_grad():
            x = frozen(images, stop=n)
        trainee = training.trainee_of(geometry, precision, device, start=n)
        found[TRAIN.format(n)] = training.stepping(trainee, x, recorded=on_gpu)
    for n in range(1, STAGES + 1):
        found[FORWARD.format(n)] = _forward(frozen, images, n)
    return found


def whole_cohort(batch: int, precision: str, device: torch.device, geometry: Geometry = CAFFENET) -> tuple[int, Call]:
    """(cells, a call): one step of a base and of all 35 copies of its task, every source's frozen stages run once.

    Of the paper's network that takes about 20 GB.
    """
    images = training.random_images(geometry, batch, precision, device)
    every = [cell for cell in study_cells("B", TREATMENTS, LAYERS, [0]) if cell.target == "B"]
    sources = {cell.source: training.trainee_of(geometry, precision, device).net for cell in every if cell.frozen}
    trainees = {cell: training.trainee_of(geometry, precision, device, start=cell.first_trained) for cell in every}
    labels = torch.randint(training.OUTPUTS, (batch,), device=device)
    at, lr = torch.zeros((), dtype=torch.int64, device=device), torch.tensor(1e-4, device=device)
    drop = StepDropout({stage: stage for stage in DROPOUT_STAGES}, at, training.DROPOUT)

    def step(given: Mapping[str, Tensor]) -> None:
        at.add_(1)
        cuts: dict[tuple[str | None, int], Tensor] = {}
        for source, net in sources.items():
            x = given["images"]
            for n in LAYERS:
                with torch.no_grad():
                    x = net(x, start=n - 1, stop=n, drop=drop)
                cuts[source, n] = x
        for cell, trainee in trainees.items():
            trainee.step(cuts[cell.source, cell.n] if cell.frozen else given["images"], labels, drop, lr)

    run = RecordedGraph(step) if device.type == "cuda" else step
    return len(every), lambda i: run({"images": images})


def _forward(net: CaffeNet, images: Tensor, stop: int) -> Call:
    @torch.no_grad()
    def run(given: Mapping[str, Tensor]) -> None:
        net(given["images"], stop=stop)

    recorded = RecordedGraph(run) if images.is_cuda else run
    return lambda i: recorded({"images": images})
