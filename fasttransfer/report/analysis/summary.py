"""A study as means for each n: of top-1, of paired differences, of their parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fasttransfer.core.intervals import Estimate, NoiseKind
from fasttransfer.report.analysis.convergence import gain_of
from fasttransfer.report.analysis.noise import Contrast, Key, Noise, minus
from fasttransfer.report.analysis.pairs import PairedScores, Score, pair_scores, targets_of
from fasttransfer.study.cells import ALL_TREATMENTS, BASE, BASE_PLUS
from fasttransfer.study.records import Result

# Of a Row, at equal training: the two networks whose difference it is. A Line of a comparison is named by them too.
PARTS = {
    "freezing": "selffer+ - selffer",
    "specificity": "selffer - transfer",
    "boost": "transfer+ - selffer+",
}


@dataclass(frozen=True)
class Row:
    """One n, averaged over targets and seeds. Dictionaries hold the treatments with at least one run.

    The equal-training parts are over the runs that have selffer+, selffer and transfer, so that freezing + specificity
    = frozen_cost; where no run has all three, each is over the runs it has. `lost` and `co_adaptation`, the paper's,
    are over the runs that have base, selffer and transfer; their difference is the specificity over those runs.
    """

    n: int
    top1: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]  # treatment - base, paired
    freezing: Estimate | None  # selffer+ - selffer
    specificity: Estimate | None  # selffer - transfer
    frozen_cost: Estimate | None  # selffer+ - transfer
    boost: Estimate | None  # transfer+ - selffer+
    lost: Estimate | None  # base - transfer
    co_adaptation: Estimate | None  # base - selffer
    boost_over_base: Estimate | None  # transfer+ - base

    def part(self, name: str) -> Estimate | None:
        """Return the part called `name`, one of PARTS."""
        return {"freezing": self.freezing, "specificity": self.specificity, "boost": self.boost}[name]


@dataclass(frozen=True)
class Summary:
    """A study, or one target of it, as means for each n."""

    score: Score
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    treatments: tuple[str, ...]  # those the study plans, in the order of ALL_TREATMENTS
    base: Estimate | None
    base_plus: Estimate | None
    gain: Estimate | None  # base+ - base, paired
    rows: tuple[Row, ...]
    difference: Mapping[str, Estimate]  # treatment - base, paired, over all n
    boost: Estimate | None  # transfer+ - selffer+, paired, over all n
    noise_kind: NoiseKind  # what the intervals of most of its differences are made of


def summarise(
    results: Iterable[Result],
    *,
    score: Score = "last",
    target: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Summary:
    """Return means over targets and seeds for each n; over the seeds of one target where `target` is given.

    Intervals are those of `fasttransfer.report.analysis.noise.Noise`; with one seed they need the `facts` of the study.
    """
    results = tuple(results)
    targets = targets_of(results) if target is None else (target,)
    kept = [result for result in results if result.target in targets]
    noise = Noise(kept, facts, score)
    by_n: dict[int, list[PairedScores]] = defaultdict(list)
    for drop in pair_scores(kept, score):
        by_n[drop.n].append(drop)
    planned = {result.treatment for result in kept}
    every = [drop for _, group in sorted(by_n.items()) for drop in group]
    rows = tuple(_row(noise, n, group) for n, group in sorted(by_n.items()))
    difference = {name: mean for name in ALL_TREATMENTS if (mean := _over(noise, every, name, BASE)) is not None}
    return Summary(
        score=score,
        targets=targets,
        seeds=tuple(sorted({result.seed for result in kept})),
        treatments=tuple(treatment for treatment in ALL_TREATMENTS if treatment in planned),
        base=_level(noise, targets, (BASE, 0)),
        base_plus=_level(noise, targets, (BASE_PLUS, 0)),
        gain=gain_of(noise, targets),
        rows=rows,
        difference=difference,
        boost=_over(noise, every, "transfer+", "selffer+"),
        noise_kind=_most_frequent_kind(rows),
    )


def _level(noise: Noise, targets: Iterable[str], key: Key) -> Estimate | None:
    contrast: Contrast = ((key, 1.0),)
    return noise.mean((target, seed, contrast) for target in targets for seed in noise.scores(target, key))


def _over(noise: Noise, among: Iterable[PairedScores], left: str, right: str) -> Estimate | None:
    """Return the mean of left - right; each n of each target is a constant, seeds are the draws."""
    return noise.mean(
        (drop.target, drop.seed, minus((left, drop.n), (right, 0 if right == BASE else drop.n))) for drop in among
    )


def _row(noise: Noise, n: int, group: Sequence[PairedScores]) -> Row:
    # Where some runs have all networks of a sum, its parts are taken over those only: means over different runs
    # would not add up, and the gap would be the difficulty of the tasks.
    equal = [d for d in group if d.freezing is not None and d.specificity is not None] or group
    paper = [d for d in group if d.lost is not None and d.co_adaptation is not None] or group
    top1 = {
        name: mean
        for name in ALL_TREATMENTS
        if (mean := noise.mean((d.target, d.seed, (((name, n), 1.0),)) for d in group)) is not None
    }
    difference = {name: mean for name in ALL_TREATMENTS if (mean := _over(noise, group, name, BASE)) is not None}
    return Row(
        n=n,
        top1=top1,
        difference=difference,
        freezing=_over(noise, equal, "selffer+", "selffer"),
        specificity=_over(noise, equal, "selffer", "transfer"),
        frozen_cost=_over(noise, equal, "selffer+", "transfer"),
        boost=_over(noise, group, "transfer+", "selffer+"),
        lost=_cost(noise, paper, n, "transfer"),
        co_adaptation=_cost(noise, paper, n, "selffer"),
        boost_over_base=_over(noise, group, "transfer+", BASE),
    )


def _cost(noise: Noise, among: Iterable[PairedScores], n: int, treatment: str) -> Estimate | None:
    """Return base - treatment."""
    return noise.mean((d.target, d.seed, minus((BASE, 0), (treatment, n))) for d in among)


def _most_frequent_kind(rows: Iterable[Row]) -> NoiseKind:
    kinds: Counter[NoiseKind] = Counter()
    for row in rows:
        parts = (row.freezing, row.specificity, row.boost)
        kinds.update(one.kind for one in (*row.difference.values(), *parts) if one is not None)
    return kinds.most_common(1)[0][0] if kinds else "none"
