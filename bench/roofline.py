"""What training needs at the least: operations and bytes of a stage, a cell, a cohort, a study.

FLOPs are those of convolutions and matrix products, two a multiply-add, counted by `training.cost`; what else
a stage does is a thousandth of that. Bytes are what has to be read and written if every stage were one operator forward
and one backward, whose insides never reach memory: the fewest that any program with these stages moves.
Between them and the ceilings of a machine lies the least time that the work can take.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fasttransfer.networks.geometry import STAGES, Geometry, layer_of
from fasttransfer.study.cells import Cell, cohorts, deepest_cuts
from fasttransfer.study.recipe import Recipe
from fasttransfer.training import cost


@dataclass(frozen=True)
class Work:
    """Operations, and bytes read and written, at the least."""

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Work:
        return Work(self.flops * times, self.bytes * times)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The least time on a machine that can do so much: whichever of the two takes longer."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


NOTHING = Work(0, 0)


@dataclass(frozen=True)
class CohortWork:
    """Cells that are trained on one stream, for so long.

    Attributes:
        outputs: width of their last layer.
        steps: training steps; checks: validations, each of val_images.
    """

    cells: tuple[Cell, ...]
    outputs: int
    steps: int
    checks: int
    val_images: int


def forward(geometry: Geometry, outputs: int, images: int, item: int, *, start: int = 0, stop: int = STAGES) -> Work:
    """Stages `start` + 1 to `stop` on so many images, nothing kept; `item` is bytes of a number, 2 or 4."""
    stages = range(start + 1, stop + 1)
    moved = sum(sum(_sizes(geometry, outputs, stage, images, item)) for stage in stages)
    return Work(2 * images * sum(geometry.macs(outputs)[start:stop]), moved)


def entrance(geometry: Geometry, images: int, item: int, means: int = 1) -> Work:
    """Crops of a store's images, read as bytes and written as numbers, once a mean image that is subtracted."""
    values = images * math.prod(geometry.cut_shape(0))
    return Work(0, means * values * (1 + item))


def trained(geometry: Geometry, outputs: int, cell: Cell, images: int, item: int) -> Work:
    """One step of the stages that `cell` trains, from its cut to its update: forward, backward, weights."""
    start = cell.first_trained
    moved = 0
    for stage in range(start + 1, STAGES + 1):
        x, w, y = _sizes(geometry, outputs, stage, images, item)
        values = images * math.prod(_out(geometry, outputs, stage))
        kept = values * item if layer_of(stage).normalises else 0
        codes = values // 2 if layer_of(stage).pools else 0  # where a window's maximum was, in four bits
        active = y if layer_of(stage).after == "relu" else 0  # which values a ReLU let through
        first = stage == start + 1
        forwards = x + w + y + kept + codes
        backwards = y + kept + codes + active + x + w + (0 if first else w + x)
        moved += forwards + backwards + _update_bytes(geometry, outputs, stage, item)
    return Work(2 * images * cost.trained_macs(geometry, outputs, cell), moved)


def cohort(geometry: Geometry, outputs: int, cells: Iterable[Cell], images: int, item: int) -> Work:
    """One training step of all `cells` on one stream, their images' way in and their shared prefixes included."""
    cells = tuple(cells)
    work = _shared(geometry, outputs, cells, images, item)
    for cell in cells:
        work += trained(geometry, outputs, cell, images, item)
    return work


def validation(geometry: Geometry, outputs: int, cells: Iterable[Cell], images: int, item: int) -> Work:
    """So many validation images for all `cells`: forward only, prefixes shared."""
    cells = tuple(cells)
    work = _shared(geometry, outputs, cells, images, item)
    for cell in cells:
        work += forward(geometry, outputs, images, item, start=cell.first_trained)
    return work


def study(geometry: Geometry, batch: int, cohorts: Iterable[CohortWork], item: int) -> Work:
    """Everything that is trained and validated."""
    work = NOTHING
    for each in cohorts:
        work += cohort(geometry, each.outputs, each.cells, batch, item) * each.steps
        checked = validation(geometry, each.outputs, each.cells, batch, item)
        batches = each.checks * each.val_images / batch
        work += Work(round(checked.flops * batches), round(checked.bytes * batches))
    return work


def cohorts_of(
    recipe: Recipe,
    cells: Iterable[Cell],
    classes: Mapping[str, Sequence[str]],
    train: Mapping[str, int],
    val: Mapping[str, int],
) -> list[CohortWork]:
    """The cells of a study as they are trained: bases, and copies, of one target and seed together.

    Args:
        classes: those of each task; train, val: how many images each task has.
    """
    found = []
    for members in cohorts(cells):
        task = members[0].target
        steps = recipe.steps_for(train[task])
        checks = len(recipe.check_steps(steps))
        found.append(CohortWork(members, recipe.outputs_for(task, classes), steps, checks, val[task]))
    return found


def _shared(geometry: Geometry, outputs: int, cells: Sequence[Cell], images: int, item: int) -> Work:
    work = entrance(geometry, images, item, means=len({cell.mean_of for cell in cells}))
    for n in deepest_cuts(cells).values():
        work += forward(geometry, outputs, images, item, stop=n)
    return work


def _out(geometry: Geometry, outputs: int, stage: int) -> tuple[int, ...]:
    return (outputs,) if stage == STAGES else geometry.cut_shape(stage)


def _sizes(geometry: Geometry, outputs: int, stage: int, images: int, item: int) -> tuple[int, int, int]:
    """Bytes of what a stage reads, of its weights, and of what it writes; the last stage's are float32."""
    weight = geometry.weight_shapes(outputs)[stage - 1]
    own = 4 if stage == STAGES else item
    read = images * math.prod(geometry.cut_shape(stage - 1)) * item
    return read, (math.prod(weight) + weight[0]) * own, images * math.prod(_out(geometry, outputs, stage)) * own


def _update_bytes(geometry: Geometry, outputs: int, stage: int, item: int) -> int:
    """Weights and velocities read and written in float32, gradients read, rounded copies written if there are any."""
    weight = geometry.weight_shapes(outputs)[stage - 1]
    own = 4 if stage == STAGES else item
    return (math.prod(weight) + weight[0]) * (16 + own + (own if own < 4 else 0))
