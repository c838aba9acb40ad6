"""From top-1 scores to what a cut costs: paired differences, their parts and their intervals.

Pairing is the lesson of the published records: halves of the classes differ in difficulty by more than most
treatments do, so a network is only ever compared with the base of its own target and seed. Means over targets
and seeds are taken of those differences, never the other way round.

All scores are top-1 on the validation pictures, in [0, 1]; differences are treatment minus base, same unit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fasttransfer.cells import TREATMENTS
from fasttransfer.records import Result

Score = Literal["last", "best10"]


@dataclass(frozen=True)
class Drop:
    """One target, one seed, one n: the base and the finished networks that copied n layers."""

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
    def boost(self) -> float | None:
        """transfer+ - base: what starting from another task's layers leaves after fine-tuning."""
        return self.difference("transfer+")

    @property
    def boost_over_selffer(self) -> float | None:
        """transfer+ - selffer+: the boost beyond what restarting and training longer gives."""
        return _minus(self.top1.get("transfer+"), self.top1.get("selffer+"))


@dataclass(frozen=True)
class Estimate:
    """A mean over runs. `half`: half the width of its 95 % interval; None where the runs cannot give one."""

    value: float
    runs: int
    half: float | None = None


@dataclass(frozen=True)
class Row:
    """One n, averaged over targets and seeds. Dictionaries hold the treatments with at least one run."""

    n: int
    top1: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]  # treatment - base, paired
    lost: Estimate | None  # these three over the runs that have base, selffer and transfer, so that they add up
    co_adaptation: Estimate | None
    specificity: Estimate | None
    boost: Estimate | None
    boost_over_selffer: Estimate | None


@dataclass(frozen=True)
class Summary:
    """A study, or one target of it, as means for each n."""

    score: Score
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    treatments: tuple[str, ...]  # those the study plans, in the order of TREATMENTS
    base: Estimate | None
    rows: tuple[Row, ...]


def score_of(result: Result, score: Score = "last") -> float | None:
    """Top-1 of a finished network; None for one that is planned, running or diverged.

    `last` is the last validation check; `best10` the mean of the ten best, which the paper plots. A running
    network has no score: part of its training against all of its base's would look like a cost.
    """
    if result.state != "done":
        return None
    return result.best10_top1 if score == "best10" else result.last_top1


def drops(results: Iterable[Result], score: Score = "last") -> list[Drop]:
    """Pairs every network with the base of its own target and seed.

    Returns:
        one `Drop` for each (target, seed, n) that the study plans, n from 1, sorted in that order.
    """
    bases: dict[tuple[str, int], float] = {}
    cells: dict[tuple[str, int, int], dict[str, float]] = defaultdict(dict)
    for result in results:
        value = score_of(result, score)
        if result.treatment == "base":
            if value is not None:
                bases[result.target, result.seed] = value
            continue
        top1 = cells[result.target, result.seed, result.n]
        if value is not None:
            top1[result.treatment] = value
    return [
        Drop(target, seed, n, bases.get((target, seed)), top1)
        for (target, seed, n), top1 in sorted(cells.items(), key=lambda item: item[0])
    ]


def summarise(results: Iterable[Result], *, score: Score = "last", target: str | None = None) -> Summary:
    """Means over targets and seeds for each n; over the seeds of one target where `target` is given."""
    results = tuple(results)
    targets = targets_of(results) if target is None else (target,)
    kept = [result for result in results if result.target in targets]
    by_n: dict[int, list[Drop]] = defaultdict(list)
    for drop in drops(kept, score):
        by_n[drop.n].append(drop)
    planned = {result.treatment for result in kept}
    bases = [
        (result.target, value)
        for result in kept
        if result.treatment == "base" and (value := score_of(result, score)) is not None
    ]
    return Summary(
        score=score,
        targets=targets,
        seeds=tuple(sorted({result.seed for result in kept})),
        treatments=tuple(treatment for treatment in TREATMENTS if treatment in planned),
        base=estimate(bases),
        rows=tuple(_row(n, group) for n, group in sorted(by_n.items())),
    )


def targets_of(results: Iterable[Result]) -> tuple[str, ...]:
    """The tasks that networks are compared on; that of a base that is only copied from does not count."""
    results = tuple(results)
    compared = {result.target for result in results if result.treatment != "base"}
    return tuple(sorted(compared or {result.target for result in results}))


def _row(n: int, group: Sequence[Drop]) -> Row:
    def mean(value: Callable[[Drop], float | None], among: Sequence[Drop] = group) -> Estimate | None:
        return estimate((drop.target, v) for drop in among if (v := value(drop)) is not None)

    def each(value: Callable[[Drop, str], float | None]) -> dict[str, Estimate]:
        means = {}
        for name in TREATMENTS:
            found = estimate((drop.target, v) for drop in group if (v := value(drop, name)) is not None)
            if found is not None:
                means[name] = found
        return means

    # Where some runs have all three networks, the parts are taken over those only: means over different runs
    # would not add up, and the gap would be the difficulty of the tasks.
    whole = [drop for drop in group if drop.lost is not None and drop.co_adaptation is not None] or group
    return Row(
        n=n,
        top1=each(lambda drop, name: drop.top1.get(name)),
        difference=each(lambda drop, name: drop.difference(name)),
        lost=mean(lambda drop: drop.lost, whole),
        co_adaptation=mean(lambda drop: drop.co_adaptation, whole),
        specificity=mean(lambda drop: drop.specificity, whole),
        boost=mean(lambda drop: drop.boost),
        boost_over_selffer=mean(lambda drop: drop.boost_over_selffer),
    )


def estimate(values: Iterable[tuple[str, float]]) -> Estimate | None:
    """The mean of (target, value) pairs, one a run, with its 95 % interval; None where there are none.

    The spread is that of the seeds inside each target (pooled over targets): two tasks differ for reasons
    that are not chance, and their difference says nothing about what another seed would give. So degrees of
    freedom are runs minus targets, and a study with one seed has no interval. With one target this is
    Student's plain t interval.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for target, value in values:
        groups[target].append(value)
    runs = sum(map(len, groups.values()))
    if runs == 0:
        return None
    mean = math.fsum(value for group in groups.values() for value in group) / runs
    freedom = runs - len(groups)
    if freedom == 0:
        return Estimate(mean, runs)
    squares = math.fsum((value - math.fsum(group) / len(group)) ** 2 for group in groups.values() for value in group)
    return Estimate(mean, runs, t_quantile(freedom) * math.sqrt(squares / freedom / runs))


def t_quantile(freedom: int, probability: float = 0.975) -> float:
    """Quantile of Student's t distribution, `probability` in (0.5, 1), whole degrees of freedom from 1.

    Bisection on the closed form of the distribution (Abramowitz & Stegun 26.7.3-4).
    """
    inside = 2 * probability - 1
    low, high = 0.0, math.pi / 2  # the angle whose tangent is t / sqrt(freedom)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, freedom) < inside else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def _t_inside(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def chance(facts: Mapping[str, Any], target: str) -> float | None:
    """Top-1 of guessing, 1 / classes of the target; None where the classes are not recorded."""
    classes = facts.get("classes", {}).get(target)
    return 1 / len(classes) if classes else None


def mean_chance(facts: Mapping[str, Any], targets: Sequence[str]) -> float | None:
    """The chance level a mean over `targets` is held against; None where one of them is not recorded."""
    levels = [level for target in targets if (level := chance(facts, target)) is not None]
    return math.fsum(levels) / len(levels) if levels and len(levels) == len(targets) else None


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right
