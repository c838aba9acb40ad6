"""The paper's 163 networks at the rates of this machine: how long all of them would take.

Every network is trained as the paper did, for as many steps of 256 images and with a validation every 1,000. Networks
of one target and one split share a stream of images, and each source's frozen stages run once for all that start
behind them, as a study here does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fasttransfer.bench.cells import FORWARD, TRAIN
from fasttransfer.bench.roofline import CohortWork
from fasttransfer.networks.geometry import STAGES
from fasttransfer.study import paper
from fasttransfer.study.cells import Cell, base, deepest_cuts

NETWORKS, K20_DAYS = 163, 1548
BATCH, CHECK_EVERY, STEPS = 256, 1000, 450_000
OUTPUTS = 1000  # the paper's networks had as many, also for half of the classes


@dataclass(frozen=True)
class CellTimes:
    """Seconds an image: `train[n]` of a step from cut n, `forward[n]` of stages 1 to n, `feed` of the way in."""

    train: tuple[float, ...]
    forward: tuple[float, ...]
    feed: float


@dataclass(frozen=True)
class Projection:
    """Seconds of the study: trained together, and each network by itself with nothing shared."""

    together: float
    alone: float


def papers_networks() -> list[CohortWork]:
    """The study as it is recorded, split by split; networks without records count as bases on half of the classes."""
    groups: dict[tuple[str, str, bool], list[paper.PaperNetwork]] = {}
    for net in paper.load_networks():
        groups.setdefault((net.study, net.target, net.treatment == "base"), []).append(net)
    found = []
    for (_, target, _), nets in groups.items():
        cells = tuple(Cell(0, target, net.treatment, net.n) for net in nets)
        steps = nets[0].iterations
        val = nets[0].classes * paper.VAL_IMAGES_PER_CLASS
        found.append(CohortWork(cells, OUTPUTS, steps, steps // CHECK_EVERY, val))
    missing = NETWORKS - len(paper.load_networks())
    whole = CohortWork((base("A", 0),), OUTPUTS, STEPS, STEPS // CHECK_EVERY, 500 * paper.VAL_IMAGES_PER_CLASS)
    return [*found, *[whole] * missing]


def rates_of(parts: Mapping[str, Any]) -> CellTimes | None:
    """The rates in a result of `bench all`; None where they were not measured.

    Where the images' way in was not measured, it counts as nothing.
    """
    cells = parts.get("cells", {})
    if "seconds" not in cells:
        return None
    seconds = {name: timing["median"] / cells["batch"] for name, timing in cells["seconds"].items()}
    fed = list(parts.get("data", {}).get("feed", {}).values())  # by number of cores, all of them last
    feed = 1 / fed[-1]["images per second"]["fasttransfer raw"] if fed else 0.0
    return CellTimes(
        tuple(seconds[TRAIN.format(n)] for n in range(STAGES)),
        (0.0, *(seconds[FORWARD.format(n)] for n in range(1, STAGES + 1))),
        feed,
    )


def project(cohorts: Iterable[CohortWork], rates: CellTimes) -> Projection:
    """What `cohorts` take at `rates`."""
    cohorts = list(cohorts)
    alone = [(CohortWork((cell,), c.outputs, c.steps, c.checks, c.val_images)) for c in cohorts for cell in c.cells]
    return Projection(sum(_seconds(c, rates) for c in cohorts), sum(_seconds(c, rates) for c in alone))


def _seconds(cohort: CohortWork, rates: CellTimes) -> float:
    starts = [cell.first_trained for cell in cohort.cells]
    shared = rates.feed * len({cell.mean_of for cell in cohort.cells})
    shared += sum(rates.forward[n] for n in deepest_cuts(cohort.cells).values())
    training = shared + sum(rates.train[n] for n in starts)
    checking = shared + sum(rates.forward[STAGES] - rates.forward[n] for n in starts)
    return cohort.steps * BATCH * training + cohort.checks * cohort.val_images * checking
