"""Count the multiply-adds of training, the unit of progress.

A trained layer costs three products per step (forward, gradient of its input, gradient of its weights); the first
trained layer needs no gradient of its input; a frozen layer costs its forward pass, once for all cells of a cohort
that start behind it.
"""

from __future__ import annotations

from collections.abc import Iterable

from fasttransfer.networks.architecture import Architecture
from fasttransfer.study.cells import Cell, deepest_cuts


def trained_macs(network: Architecture, outputs: int, cell: Cell) -> int:
    """Return the multiply-adds of one training step and image in the layers that `cell` trains."""
    start = cell.first_trained
    macs = network.profile(outputs).macs[start:]
    return 3 * sum(macs) - macs[0]


def prefix_macs(network: Architecture, outputs: int, cells: Iterable[Cell]) -> int:
    """Return the multiply-adds per image of the frozen prefixes that `cells` share, each up to its deepest cut."""
    return sum(sum(network.profile(outputs).macs[:n]) for n in deepest_cuts(cells).values())


def cohort_macs(network: Architecture, outputs: int, cells: Iterable[Cell]) -> int:
    """Return the multiply-adds of one training step and image of all `cells` on one stream."""
    cells = tuple(cells)
    return prefix_macs(network, outputs, cells) + sum(trained_macs(network, outputs, c) for c in cells)


def validation_macs(network: Architecture, outputs: int, cells: Iterable[Cell]) -> int:
    """Return the multiply-adds of one validation image for all `cells`: forward only, prefixes shared."""
    cells = tuple(cells)
    live = sum(sum(network.profile(outputs).macs[cell.first_trained :]) for cell in cells)
    return prefix_macs(network, outputs, cells) + live
