"""Count the multiply-adds of training, the unit of progress.

A trained layer costs three products per step (forward, gradient of its input, gradient of its weights); the first
trained layer needs no gradient of its input; a frozen layer costs its forward pass, once for all cells of a cohort
that start behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from fasttransfer.networks.geometry import Geometry
from fasttransfer.study.cells import Cell, deepest_cuts


def trained_macs(geometry: Geometry, outputs: int, cell: Cell) -> int:
    """Return the multiply-adds of one training step and image in the layers that `cell` trains."""
    start = cell.first_trained
    macs = geometry.macs(outputs)[start:]
    return 3 * sum(macs) - macs[0]


def prefix_macs(geometry: Geometry, outputs: int, cells: Iterable[Cell]) -> int:
    """Return the multiply-adds per image of the frozen prefixes that `cells` share, each up to its deepest cut."""
    return sum(sum(geometry.macs(outputs)[:n]) for n in deepest_cuts(cells).values())


def cohort_macs(geometry: Geometry, outputs: int, cells: Iterable[Cell]) -> int:
    """Return the multiply-adds of one training step and image of all `cells` on one stream."""
    cells = tuple(cells)
    return prefix_macs(geometry, outputs, cells) + sum(trained_macs(geometry, outputs, c) for c in cells)


def validation_macs(geometry: Geometry, outputs: int, cells: Iterable[Cell]) -> int:
    """Return the multiply-adds of one validation image for all `cells`: forward only, prefixes shared."""
    cells = tuple(cells)
    live = sum(sum(geometry.macs(outputs)[cell.first_trained :]) for cell in cells)
    return prefix_macs(geometry, outputs, cells) + live


def weight_count(geometry: Geometry, outputs: int, start: int = 0) -> int:
    """Return how many weights and biases the stages behind cut `start` have."""
    return sum(math.prod(shape) + shape[0] for shape in geometry.weight_shapes(outputs)[start:])
