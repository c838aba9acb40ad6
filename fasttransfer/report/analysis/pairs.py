"""Every network beside the base of its own target and seed: the only differences that are ever taken."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.records import Result

Score = Literal["last", "best10"]


@dataclass(frozen=True)
class PairedScores:
    """One target, one seed, one n: the base and the finished networks that copied n layers.

    `lost`, `co_adaptation` and `boost_over_base` are the paper's differences from the base, which was trained for one
    schedule where a copied network had two. `freezing`, `specificity`, `frozen_cost` and `boost` compare networks of
    equal training.
    """

    target: str
    seed: int
    n: int
    base: float | None
    top1: Mapping[str, float]  # treatment -> top-1, of finished networks only

    def difference(self, treatment: str) -> float | None:
        """Treatment minus base; None unless both are finished."""
        return _minus(self.top1.get(treatment), self.base)

    @property
    def lost(self) -> float | None:
        """base - transfer: what copying and freezing another task's layers costs."""
        return _minus(self.base, self.top1.get("transfer"))

    @property
    def co_adaptation(self) -> float | None:
        """base - selffer: what breaking the network at the cut costs, the features being the task's own."""
        return _minus(self.base, self.top1.get("selffer"))

    @property
    def specificity(self) -> float | None:
        """selffer - transfer: what the features cost by being another task's."""
        return _minus(self.top1.get("selffer"), self.top1.get("transfer"))

    @property
    def freezing(self) -> float | None:
        """selffer+ - selffer: the cost of freezing, at equal training."""
        return _minus(self.top1.get("selffer+"), self.top1.get("selffer"))

    @property
    def frozen_cost(self) -> float | None:
        """selffer+ - transfer: the cost of freezing another task's layers, freezing + specificity."""
        return _minus(self.top1.get("selffer+"), self.top1.get("transfer"))

    @property
    def boost(self) -> float | None:
        """transfer+ - selffer+: what is left of the other task's layers after fine-tuning, at equal training."""
        return _minus(self.top1.get("transfer+"), self.top1.get("selffer+"))

    @property
    def boost_over_base(self) -> float | None:
        """transfer+ - base: the paper's boost, with the training that the base did not have."""
        return self.difference("transfer+")


def score_of(result: Result, score: Score = "last") -> float | None:
    """Top-1 of a finished network, a stuck one included; None for one that is planned, running, diverged or skipped.

    `last` is the last validation check; `best10` the mean of the ten best, which the paper plots. A running
    network has no score: part of its training against all of its base's would look like a cost.
    """
    if not result.trained:
        return None
    return result.best10_top1 if score == "best10" else result.last_top1


def pair_scores(results: Iterable[Result], score: Score = "last") -> list[PairedScores]:
    """Pairs every network with the base of its own target and seed.

    Returns:
        one `PairedScores` for each (target, seed, n) that the study plans, n from 1, sorted in that order. The base+
        has no n and is in none.
    """
    bases: dict[tuple[str, int], float] = {}
    cells: dict[tuple[str, int, int], dict[str, float]] = defaultdict(dict)
    for result in results:
        value = score_of(result, score)
        if result.treatment == "base":
            if value is not None:
                bases[result.target, result.seed] = value
            continue
        if result.treatment == BASE_PLUS:
            continue
        top1 = cells[result.target, result.seed, result.n]
        if value is not None:
            top1[result.treatment] = value
    return [
        PairedScores(target, seed, n, bases.get((target, seed)), top1)
        for (target, seed, n), top1 in sorted(cells.items(), key=lambda item: item[0])
    ]


def targets_of(results: Iterable[Result]) -> tuple[str, ...]:
    """Return the tasks that networks are compared on; that of a base that is only copied from does not count."""
    results = tuple(results)
    compared = {result.target for result in results if result.treatment not in (BASE, BASE_PLUS)}
    return tuple(sorted(compared or {result.target for result in results}))


def chance(facts: Mapping[str, Any], target: str) -> float | None:
    """Top-1 of guessing, 1 / classes of the target; None where the classes are not recorded."""
    classes = class_count(facts, target)
    return 1 / classes if classes else None


def class_count(facts: Mapping[str, Any], target: str) -> int | None:
    """How many classes the target has; None where that is not recorded.

    Where the seeds of a study are splits, the classes differ between seeds and only their number is recorded.
    """
    classes = facts.get("classes", {}).get(target)
    return len(classes) if classes else facts.get("class_counts", {}).get(target)


def mean_chance(facts: Mapping[str, Any], targets: Sequence[str]) -> float | None:
    """The chance level a mean over `targets` is held against; None where one of them is not recorded."""
    levels = [level for target in targets if (level := chance(facts, target)) is not None]
    return math.fsum(levels) / len(levels) if levels and len(levels) == len(targets) else None


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right
