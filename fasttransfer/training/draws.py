"""The random draws of a cell: initial weights, dropout masks, order and views of its images.

Each is a function of study seed, purpose and task alone, never of what else is trained, where, or when. All cells of
one target and seed share their draws, so that they differ only in what is compared. Bases have draws of their own, so
that the new layers of a selffer do not start where those of its base did.
"""

from __future__ import annotations

from torch import Tensor

from fasttransfer.core import randomness
from fasttransfer.networks.architecture import Architecture
from fasttransfer.pipelines.streams import Stream
from fasttransfer.pipelines.views import list_views
from fasttransfer.study.cells import BASE, HE, RANDOM_HE, Cell
from fasttransfer.study.configuration import Study

_UNIT_SCALE = 1 / 64  # of pixel differences, for about unit variance


def purpose_of(cell: Cell) -> str:
    """Return "base" or "cell", which enters every key."""
    return "base" if cell.treatment == BASE else "cell"


def init_of(study: Study, cell: Cell) -> str:
    """Return the kind of initial values that all layers of `cell` have unless they are copied from a base."""
    return "he" if cell.treatment == RANDOM_HE else study.recipe.init


def image_stream(study: Study, cell: Cell, images: int) -> Stream:
    """Return order and views of the training images of `cell`, of which there are `images`."""
    purpose = purpose_of(cell)
    margin = study.recipe.network.margin
    return Stream(
        order_key=randomness.key(cell.seed, f"{purpose}-order", cell.target),
        view_key=randomness.key(cell.seed, f"{purpose}-views", cell.target),
        images=images,
        batch=study.recipe.batch,
        margin=margin,
        choices=list_views(study.views, margin) if study.views else (),
    )


def dropout_keys(cell: Cell, network: Architecture) -> dict[int, int]:
    """Return stage -> Philox key of what it draws in training."""
    purpose = f"{purpose_of(cell)}-dropout"
    return {stage: randomness.key(cell.seed, purpose, cell.target, stage) for stage in network.random_stages}


def start_weights(
    study: Study,
    purpose: str,
    seed: int,
    task: str,
    outputs: int,
    init: str,
    start: int = 0,
    stop: int | None = None,
) -> dict[str, Tensor]:
    """Return the initial state of stages `start + 1` to `stop` on `task`: parameters float32, and buffers.

    The first layer of a base begins at the recipe's `first_init` times its size; random layers, which stay as they are,
    do not.

    Args:
        purpose: "base", "cell" or "random".
        outputs: width of the last layer.
        init: scales the draws and sets the biases: the draws are the same for all. Where it is not the recipe's, it is
            He's for the second random control. He's values keep the variance of a signal: the first layer's
            bring pixels to about unit variance, whatever the recipe's scale, else the control's loss explodes at once.
    """
    first = study.recipe.first_init if purpose == "base" else 1.0
    if init != study.recipe.init:
        first *= _UNIT_SCALE / study.recipe.pixel_scale
    return study.recipe.network.draw(
        outputs,
        init,
        lambda stage: randomness.key(seed, f"{purpose}-weights", task, stage),
        start,
        stop,
        first=first,
    )


def random_source(study: Study, cell: Cell, outputs: int, n: int) -> dict[str, Tensor]:
    """Return stages 1 to `n` of the untrained source of `cell`, "R" or "H", see `Cell.source`."""
    init = "he" if cell.source == HE else study.recipe.init
    return start_weights(study, "random", cell.seed, cell.target, outputs, init, stop=n)
