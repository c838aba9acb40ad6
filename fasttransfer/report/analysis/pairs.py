"""Each network paired with those of its own target and seed: the only differences that the report takes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fasttransfer.report.analysis.effects import Effect
from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.records import Result

Score = Literal["last", "best10"]


@dataclass(frozen=True)
class PairedScores:
    """The base and the finished networks that copied n layers, of one target and seed."""

    target: str
    seed: int
    n: int
    base: float | None
    top1: Mapping[str, float]  # treatment -> top-1, of finished networks only

    def __getitem__(self, effect: Effect) -> float | None:
        """Return left - right of `effect`; None unless both networks are finished."""
        left, right = (self.base if one == BASE else self.top1.get(one) for one in (effect.left, effect.right))
        return None if left is None or right is None else left - right


def score_of(result: Result, score: Score = "last") -> float | None:
    """Return the top-1 of a finished or stuck network; None for one that is planned, running, diverged or skipped.

    `last` is the last validation check; `best10` the mean of the ten best, which the paper plots. A running
    network has no score: part of its training against all of its base's would look like a cost.
    """
    if not result.trained:
        return None
    return result.best10_top1 if score == "best10" else result.last_top1


def pair_scores(results: Iterable[Result], score: Score = "last") -> list[PairedScores]:
    """Pair every network with the base of its own target and seed.

    Returns:
        one `PairedScores` for each (target, seed, n) that the study plans, n from 1, sorted in that order. None has
        the base+, which has no n.
    """
    bases: dict[tuple[str, int], float] = {}
    cells: dict[tuple[str, int, int], dict[str, float]] = defaultdict(dict)
    for result in results:
        value = score_of(result, score)
        if result.treatment == BASE and value is not None:
            bases[result.target, result.seed] = value
        if result.treatment in (BASE, BASE_PLUS):
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
    """Return the top-1 of guessing, 1 / classes of the target; None where the classes are not recorded."""
    classes = class_count(facts, target)
    return 1 / classes if classes else None


def class_count(facts: Mapping[str, Any], target: str) -> int | None:
    """Return the number of classes of the target; None where that is not recorded.

    Where the seeds of a study are splits, the classes differ between seeds and only their number is recorded.
    """
    classes = facts.get("classes", {}).get(target)
    return len(classes) if classes else facts.get("class_counts", {}).get(target)


def mean_chance(facts: Mapping[str, Any], targets: Sequence[str]) -> float | None:
    """Return the mean chance level of `targets`; None where one of them is not recorded."""
    levels = [level for target in targets if (level := chance(facts, target)) is not None]
    return math.fsum(levels) / len(levels) if levels and len(levels) == len(targets) else None
