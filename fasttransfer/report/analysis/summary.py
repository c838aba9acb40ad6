"""A study as means for each n: of top-1 and of paired differences."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fasttransfer.core.intervals import Estimate, NoiseKind
from fasttransfer.report.analysis.convergence import gain_of
from fasttransfer.report.analysis.effects import (
    BOOST,
    CO_ADAPTATION,
    EFFECTS,
    FREEZING,
    FROM_BASE,
    FROZEN_COST,
    LOST,
    SPECIFICITY,
    Contrast,
    Effect,
    Key,
)
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.report.analysis.pairs import PairedScores, Score, pair_scores, targets_of
from fasttransfer.study.cells import ALL_TREATMENTS, BASE, BASE_PLUS
from fasttransfer.study.records import Result


@dataclass(frozen=True)
class _Effects:
    """The effects that at least one run has, in the order of EFFECTS."""

    effects: Mapping[Effect, Estimate]

    def __getitem__(self, effect: Effect) -> Estimate | None:
        return self.effects.get(effect)

    @property
    def difference(self) -> dict[str, Estimate]:
        """The differences from the base, by treatment."""
        return {name: self.effects[effect] for name, effect in FROM_BASE.items() if effect in self.effects}


@dataclass(frozen=True)
class Row(_Effects):
    """The means of one n over targets and seeds.

    Freezing, specificity and their sum are over the runs that have selffer+, selffer and transfer, so that they add up;
    where no run has all three, each is over the runs it has. LOST and CO_ADAPTATION are over the runs that have base,
    selffer and transfer; their difference is the specificity over those runs.
    """

    n: int
    top1: Mapping[str, Estimate]  # of the treatments with at least one run


@dataclass(frozen=True)
class Summary(_Effects):
    """A study, or one target of it, as means for each n; `effects` are those of FROM_BASE and BOOST over all n."""

    score: Score
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    treatments: tuple[str, ...]  # those the study plans, in the order of ALL_TREATMENTS
    base: Estimate | None
    base_plus: Estimate | None
    gain: Estimate | None  # base+ - base, paired
    rows: tuple[Row, ...]

    @property
    def noise_kind(self) -> NoiseKind:
        """The kind that most intervals of its rows have."""
        kinds = Counter(estimate.kind for row in self.rows for estimate in row.effects.values())
        return kinds.most_common(1)[0][0] if kinds else "none"


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
    for paired in pair_scores(kept, score):
        by_n[paired.n].append(paired)
    every = [paired for _, group in sorted(by_n.items()) for paired in group]
    planned = {result.treatment for result in kept}
    return Summary(
        effects=_effects(noise, {effect: every for effect in (*FROM_BASE.values(), BOOST)}),
        score=score,
        targets=targets,
        seeds=tuple(sorted({result.seed for result in kept})),
        treatments=tuple(treatment for treatment in ALL_TREATMENTS if treatment in planned),
        base=_level(noise, targets, (BASE, 0)),
        base_plus=_level(noise, targets, (BASE_PLUS, 0)),
        gain=gain_of(noise, targets),
        rows=tuple(_row(noise, n, group) for n, group in sorted(by_n.items())),
    )


def _level(noise: Noise, targets: Iterable[str], key: Key) -> Estimate | None:
    contrast: Contrast = ((key, 1.0),)
    return noise.mean((target, seed, contrast) for target in targets for seed in noise.scores(target, key))


def _row(noise: Noise, n: int, group: Sequence[PairedScores]) -> Row:
    # Where some runs have all networks of a sum, its parts are taken over those only: means over different runs
    # would not add up, and the gap would be the difficulty of the tasks.
    equal = [one for one in group if one[FREEZING] is not None and one[SPECIFICITY] is not None] or group
    paper = [one for one in group if one[LOST] is not None and one[CO_ADAPTATION] is not None] or group
    among = dict.fromkeys(EFFECTS, group)
    among |= {FREEZING: equal, SPECIFICITY: equal, FROZEN_COST: equal, LOST: paper, CO_ADAPTATION: paper}
    top1 = {
        name: mean
        for name in ALL_TREATMENTS
        if (mean := noise.mean((one.target, one.seed, (((name, n), 1.0),)) for one in group)) is not None
    }
    return Row(_effects(noise, among), n, top1)


def _effects(noise: Noise, among: Mapping[Effect, Sequence[PairedScores]]) -> dict[Effect, Estimate]:
    """Return the mean of each effect over its runs; each n of each target is a constant, seeds are the draws."""
    means = {
        effect: noise.mean((one.target, one.seed, effect.contrast(one.n)) for one in runs)
        for effect, runs in among.items()
    }
    return {effect: mean for effect, mean in means.items() if mean is not None}
