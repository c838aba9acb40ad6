"""Predict the memory that training takes: by these numbers waves are planned and studies refused.

Numbers of values follow from the shapes; what a process takes for itself, and how much more than the values alone a
step takes (scratch memory of the convolutions, gaps between tensors), was measured (docs/decisions/waves.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fasttransfer.core import machine
from fasttransfer.networks.architecture import Architecture
from fasttransfer.study.cells import Cell, by_source, deepest_cuts

OWN = 425_000_000
"""Bytes of a process that has imported PyTorch, before it trains anything."""
SHARED = 340_000_000
"""Bytes of the libraries' files, which all processes share."""
SHARE = 0.8
"""Share of the free memory to plan with: the rest is for the system, its page cache and other programs."""

_GAPS = 1.08  # factor on everything: free memory between tensors


def cohort_bytes(
    network: Architecture, outputs: int, batch: int, precision: str, cells: Iterable[Cell], moments: int = 1
) -> int:
    """Return the bytes that one process takes at the most while it trains `cells` together, without libraries.

    Some stay: each cell's trained layers (weights and the optimiser's moments, in bf16 the rounded weights too) and of
    each source the stages that frozen cells read. Others come and go: while the cohort is built, whole sources and the
    initial values; while it trains, the batch, the cuts, and one cell's activations and gradients, for cells are
    stepped one after another.

    Args:
        moments: values that the optimiser keeps per weight.
    """
    cells = tuple(cells)
    parameters = network.profile(outputs).values
    value, copy = (2, 2) if precision == "bf16" else (4, 0)
    deepest = deepest_cuts(cells)
    live = [sum(parameters[cell.first_trained :]) for cell in cells]
    frozen = {(c.source, c.n) for c in cells if c.frozen}
    stays = sum(live) * (4 + 4 * moments + copy) + sum((4 + copy) * sum(parameters[:n]) for n in deepest.values())
    building = 4 * sum(parameters[min(cell.n for cell in cells) :])
    for source, group in by_source(cells).items():
        read = deepest.get(source, 0)
        building += 4 * sum(parameters[read : max(c.n for c in group)])
        building += (4 - 2 * copy) * sum(parameters[:read])
    cuts = batch * value * sum(network.cut_values(n) for _, n in frozen)
    images = batch * value * network.cut_values(0) * len({network.normalised_by(c.mean_of) for c in cells})
    one = max(network.step_bytes(outputs, batch, precision, start) for start in {cell.first_trained for cell in cells})
    return int(_GAPS * (stays + max(building, images + cuts + one)))


def free_memory(device: str, workers: int, resident: int = 0) -> int | None:
    """Return the bytes that `workers` processes may have together: of the machine, or of GPUs, one for each.

    Args:
        resident: bytes of images that are held in each GPU's memory.
    """
    if device == "cpu":
        return machine.free_memory()
    each = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
    return workers * (min(each) - resident)
