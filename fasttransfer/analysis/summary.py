"""A study as means for each n: of top-1, of paired differences, of their parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fasttransfer.analysis.intervals import Estimate, estimate
from fasttransfer.analysis.pairs import Drop, Score, drops, score_of, targets_of
from fasttransfer.cells import ALL_TREATMENTS
from fasttransfer.records import Result


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
    treatments: tuple[str, ...]  # those the study plans, in the order of ALL_TREATMENTS
    base: Estimate | None
    rows: tuple[Row, ...]
    difference: Mapping[str, Estimate]  # treatment - base, paired, over all n
    boost_over_selffer: Estimate | None  # transfer+ - selffer+, paired, over all n


def summarise(results: Iterable[Result], *, score: Score = "last", target: str | None = None) -> Summary:
    """Means over targets and seeds for each n; over the seeds of one target where `target` is given.

    Intervals are those of `fasttransfer.analysis.intervals.estimate`.
    """
    results = tuple(results)
    targets = targets_of(results) if target is None else (target,)
    kept = [result for result in results if result.target in targets]
    by_n: dict[int, list[Drop]] = defaultdict(list)
    for drop in drops(kept, score):
        by_n[drop.n].append(drop)
    planned = {result.treatment for result in kept}
    bases = [
        (result.target, result.seed, value)
        for result in kept
        if result.treatment == "base" and (value := score_of(result, score)) is not None
    ]
    return Summary(
        score=score,
        targets=targets,
        seeds=tuple(sorted({result.seed for result in kept})),
        treatments=tuple(treatment for treatment in ALL_TREATMENTS if treatment in planned),
        base=estimate(bases),
        rows=tuple(_row(n, group) for n, group in sorted(by_n.items())),
        difference=_differences(by_n),
        boost_over_selffer=_over_cuts(by_n, lambda drop: drop.boost_over_selffer),
    )


def _differences(by_n: Mapping[int, Sequence[Drop]]) -> dict[str, Estimate]:
    means = {}
    for name in ALL_TREATMENTS:
        found = _over_cuts(by_n, partial(Drop.difference, treatment=name))
        if found is not None:
            means[name] = found
    return means


def _over_cuts(by_n: Mapping[int, Sequence[Drop]], value: Callable[[Drop], float | None]) -> Estimate | None:
    """The mean over all networks, whatever their n: each n of each target a constant, seeds the draws."""
    return estimate(
        (f"{drop.target} {n}", drop.seed, found)
        for n, group in by_n.items()
        for drop in group
        if (found := value(drop)) is not None
    )


def _row(n: int, group: Sequence[Drop]) -> Row:
    def mean(value: Callable[[Drop], float | None], among: Sequence[Drop] = group) -> Estimate | None:
        return estimate((drop.target, drop.seed, v) for drop in among if (v := value(drop)) is not None)

    def each(value: Callable[[Drop, str], float | None]) -> dict[str, Estimate]:
        means = {}
        for name in ALL_TREATMENTS:
            found = estimate((drop.target, drop.seed, v) for drop in group if (v := value(drop, name)) is not None)
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
