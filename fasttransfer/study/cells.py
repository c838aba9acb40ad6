"""The networks of a study, called cells: which there are, their names, and which is copied from which.

The vocabulary is the paper's (Yosinski et al. 2014, section 2): two tasks A and B; `n` layers copied, in the paper 1 to
7, in general stages of any network (`fasttransfer.networks.architecture`), up to the last before the classifier.
`baseB` is trained on B from scratch; `BnB` is the selffer (first n layers from baseB, frozen), `BnB+` the same
fine-tuned; `AnB` and `AnB+` are the transfer networks (first n layers from baseA); `RnB` has n random, frozen layers.
`B8B+` (8 is the number of all stages), "base+", is baseB trained on for one more full schedule. Its gain is the missing
training of the base, which a comparison with the base would otherwise credit to the network compared. The paper, which
trained to the end, had none.
`HnB` is not in the paper either: it is `RnB` with He's initial values in all its layers. Behind three frozen layers of
the paper's small Gaussian values the signal fades, so that `RnB` says nothing about random features from there on.
`PnB` and `PnB+` copy from weights that were trained elsewhere, frozen and fine-tuned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

TASKS = ("A", "B")
TREATMENTS = ("selffer", "selffer+", "transfer", "transfer+", "random")  # the paper's, and the default grid
RANDOM_HE = "random-he"
PRETRAINED_TREATMENTS = ("pretrained", "pretrained+")
BASE = "base"
BASE_PLUS = "base+"  # a part of every study, as the bases are
ALL_TREATMENTS = (*TREATMENTS, RANDOM_HE, *PRETRAINED_TREATMENTS)
RANDOM = "R"
HE = "H"
PRETRAINED = "P"


@dataclass(frozen=True, order=True)
class Cell:
    """One network: `treatment` on `target`, with `n` layers copied.

    `treatment` is "base" (n = 0), "base+" (n = the number of stages) or one of ALL_TREATMENTS (n from 1 up to the last
    cut).
    """

    seed: int
    target: str
    treatment: str
    n: int

    @property
    def source(self) -> str | None:
        """Return the source of the first n layers: task "A" or "B", "R" or "H" (random values), "P" (weights that were
        trained elsewhere); None for a base."""
        if self.treatment == BASE:
            return None
        if self.treatment == BASE_PLUS:
            return self.target
        if self.treatment == "random":
            return RANDOM
        if self.treatment == RANDOM_HE:
            return HE
        if self.treatment in PRETRAINED_TREATMENTS:
            return PRETRAINED
        if self.treatment.startswith("selffer"):
            return self.target
        return other_task(self.target)

    @property
    def frozen(self) -> bool:
        """True if the copied layers are not trained."""
        return self.treatment in ("selffer", "transfer", "random", RANDOM_HE, "pretrained")

    @property
    def first_trained(self) -> int:
        """Return the cut behind which the stages are trained: n if the copied ones are frozen, else 0."""
        return self.n if self.frozen else 0

    @property
    def mean_of(self) -> str:
        """Return the task whose mean image is subtracted: that of the first layer's training set, else the target."""
        return self.source if self.source in TASKS else self.target

    @property
    def name(self) -> str:
        """Return the paper's name, e.g. baseA, B3B, A3B+, R3B; H3B and P3B follow R3B."""
        if self.treatment == BASE:
            return f"base{self.target}"
        return f"{self.source}{self.n}{self.target}{'' if self.frozen else '+'}"

    @property
    def label(self) -> str:
        """Return the name with the seed, unique within a study and fit for a file name, e.g. A3B+.s0."""
        return f"{self.name}.s{self.seed}"

    @property
    def needs(self) -> Cell | None:
        """Return the base network that the first layers are copied from, None if there is none."""
        return base(self.source, self.seed) if self.source in TASKS else None


def other_task(task: str) -> str:
    """Return B for A, A for B."""
    return "B" if task == "A" else "A"


def base(task: str, seed: int) -> Cell:
    """Return the base network of `task`."""
    return Cell(seed, task, BASE, 0)


def base_plus(task: str, seed: int, stages: int) -> Cell:
    """Return base+ of `task`: all `stages` copied from the base and trained on for one more full schedule."""
    return Cell(seed, task, BASE_PLUS, stages)


def study_cells(
    targets: Iterable[str], treatments: Iterable[str], layers: Iterable[int], seeds: Iterable[int], stages: int
) -> tuple[Cell, ...]:
    """Return every network of a study, each base before the networks that copy it.

    The base of every target is included even where nothing copies it, because the others are compared with it; and its
    base+, which shows whether it had finished learning.

    Args:
        layers: numbers of stages to copy; stages: number of all stages.
    """
    treatments, layers = tuple(treatments), tuple(layers)
    bases: dict[Cell, None] = {}
    copies: list[Cell] = []
    for seed in seeds:
        for target in targets:
            bases[base(target, seed)] = None
            copies.append(base_plus(target, seed, stages))
            for treatment in treatments:
                for n in layers:
                    cell = Cell(seed, target, treatment, n)
                    copies.append(cell)
                    if cell.needs is not None:
                        bases[cell.needs] = None
    return (*sorted(bases), *copies)


def cohorts(cells: Iterable[Cell]) -> list[tuple[Cell, ...]]:
    """Return the groups of cells that train together: those of one target and seed, bases apart from copies."""
    groups: dict[tuple[bool, int, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.treatment != BASE, cell.seed, cell.target), []).append(cell)
    return [tuple(group) for group in groups.values()]


def by_source(cells: Iterable[Cell]) -> dict[str, tuple[Cell, ...]]:
    """Return source -> the cells that copy from it, see `Cell.source`; bases copy from none."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.source is not None:
            groups.setdefault(cell.source, []).append(cell)
    return {source: tuple(group) for source, group in groups.items()}


def frozen_by_source(cells: Iterable[Cell]) -> dict[str, tuple[Cell, ...]]:
    """Return source -> the cells whose frozen layers are its own."""
    return by_source(cell for cell in cells if cell.frozen)


def deepest_cuts(cells: Iterable[Cell]) -> dict[str, int]:
    """Return source -> the deepest cut that a frozen cell reads of it."""
    return {source: max(cell.n for cell in group) for source, group in frozen_by_source(cells).items()}
