"""The paper's 163 networks at the rates of this machine: how long all of them would take.

Every network is trained as the paper did, for as many steps of 256 images and with a validation every 1,000. Networks
of one target and one split share a stream of images, and each source's frozen stages run once for all that start
behind them, as in a study of fasttransfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.test_cells import FORWARD, TRAIN
from fasttransfer.networks.geometry import STAGES
from fasttransfer.study import paper
from fasttransfer.study.cells import Cell, base, deepest_cuts

NETWORKS, K20_DAYS = 163, 1548
BATCH, CHECK_EVERY, STEPS = 256, 1000, 450_000


@dataclass(frozen=True)
class PaperCohort:
    """Networks that are trained on one stream: `steps` steps, and a validation of `val_images` at each check."""

    cells: tuple[Cell, ...]
    steps: int
    val_images: int

    def seconds(self, train: Sequence[float], forward: Sequence[float], feed: float) -> float:
        """Return the seconds of the cohort.

        Args:
            train: seconds per image of a step from cuts 0 to 7; forward: of the stages to cuts 0 to 8.
            feed: seconds per image of the data loader.
        """
        starts = [cell.first_trained for cell in self.cells]
        shared = feed * len({cell.mean_of for cell in self.cells})
        shared += sum(forward[n] for n in deepest_cuts(self.cells).values())
        training = shared + sum(train[n] for n in starts)
        checking = shared + sum(forward[STAGES] - forward[n] for n in starts)
        return self.steps * BATCH * training + self.steps // CHECK_EVERY * self.val_images * checking


def papers_networks() -> list[PaperCohort]:
    """Return the study split by split; networks without records count as bases on half of the classes."""
    groups: dict[tuple[str, str, bool], list[paper.PaperNetwork]] = {}
    for net in paper.load_networks():
        groups.setdefault((net.study, net.target, net.treatment == "base"), []).append(net)
    found = []
    for (_, target, _), nets in groups.items():
        cells = tuple(Cell(0, target, net.treatment, net.n) for net in nets)
        found.append(PaperCohort(cells, nets[0].iterations, nets[0].classes * paper.VAL_IMAGES_PER_CLASS))
    missing = NETWORKS - len(paper.load_networks())
    return found + [PaperCohort((base("A", 0),), STEPS, 500 * paper.VAL_IMAGES_PER_CLASS)] * missing


def project(cells: Mapping[str, Sequence[float]], batch: float, feed: float) -> tuple[float, float]:
    """Return the seconds of the study trained together, and of each network by itself with nothing shared.

    Args:
        cells: seconds of the variants of `test_cells`, for `batch` images each.
        feed: seconds per image of the data loader.
    """
    rates = {name: median(samples) / batch for name, samples in cells.items()}
    train = [rates[TRAIN.format(n)] for n in range(STAGES)]
    forward = [0.0, *(rates[FORWARD.format(n)] for n in range(1, STAGES + 1))]
    cohorts = papers_networks()
    alone = [PaperCohort((cell,), c.steps, c.val_images) for c in cohorts for cell in c.cells]
    together, each = (sum(c.seconds(train, forward, feed) for c in some) for some in (cohorts, alone))
    return together, each
