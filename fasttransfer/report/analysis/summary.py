"""A study as means for each n, of top-1 and of paired differences; and the parts of what frozen transfer costs.

At equal training the fine-tuned selffer is the reference, which has had the base's schedule and one more, as the frozen
networks have: selffer+ - transfer = freezing (selffer+ - selffer) + specificity (selffer - transfer). A study without
fine-tuned selffers beside its frozen networks, as the paper's random halves, has the paper's parts only:
base - transfer = co-adaptation (base - selffer) + specificity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fasttransfer.core.intervals import Estimate, NoiseKind
from fasttransfer.report.analysis.effects import (
    BOOST,
    CO_ADAPTATION,
    EFFECTS,
    FREEZING,
    FROM_BASE,
    FROZEN_COST,
    GAIN,
    LOST,
    SPECIFICITY,
    TREATMENTS,
    Effect,
    Key,
    level,
)
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.records import Result, Score, StudyResults

Halves = Iterable[tuple[str, int, int]]  # target, seed, n


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
    treatments: tuple[str, ...]  # those the study plans, in the order of TREATMENTS
    base: Estimate | None
    bases: Mapping[str, Estimate]  # of each target whose base is finished
    base_plus: Estimate | None
    gain: Estimate | None  # base+ - base, paired
    rows: tuple[Row, ...]

    @property
    def noise_kind(self) -> NoiseKind:
        """The kind that most intervals of its rows have."""
        kinds = Counter(estimate.kind for row in self.rows for estimate in row.effects.values())
        return kinds.most_common(1)[0][0] if kinds else "none"


def targets_of(results: Iterable[Result]) -> tuple[str, ...]:
    """Return the tasks that networks are compared on; that of a base that is only copied from does not count."""
    results = tuple(results)
    compared = {result.target for result in results if result.treatment not in (BASE, BASE_PLUS)}
    return tuple(sorted(compared or {result.target for result in results}))


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
    results = tuple(result for result in results if result.target in targets)
    noise = Noise(results, facts, score)
    planned = {result.treatment for result in results}
    bases = {one: _base_level(noise, (one,), (BASE, 0)) for one in targets}
    return Summary(
        effects=_effects(noise, dict.fromkeys((*FROM_BASE.values(), BOOST), noise.cells)),
        score=score,
        targets=targets,
        seeds=tuple(sorted({result.seed for result in results})),
        treatments=tuple(treatment for treatment in TREATMENTS if treatment in planned),
        base=_base_level(noise, targets, (BASE, 0)),
        bases={one: mean for one, mean in bases.items() if mean is not None},
        base_plus=_base_level(noise, targets, (BASE_PLUS, 0)),
        gain=gain_of(noise, targets),
        rows=tuple(_row(noise, n) for n in sorted({n for _, _, n in noise.cells})),
    )


def gain_of(noise: Noise, targets: Iterable[str]) -> Estimate | None:
    """Return base+ minus base over `targets`."""
    runs = ((target, seed, GAIN.contrast(0)) for target in targets for seed in noise.scores(target, (BASE_PLUS, 0)))
    return noise.mean(runs, unpaired=True)


def _base_level(noise: Noise, targets: Iterable[str], key: Key) -> Estimate | None:
    return noise.mean((target, seed, level(key)) for target in targets for seed in noise.scores(target, key))


def _row(noise: Noise, n: int) -> Row:
    group = [cell for cell in noise.cells if cell[2] == n]

    def having(*effects: Effect) -> Halves:
        """Where some runs have all networks of a sum, return those only: means over different runs would not add up,
        and the gap would be the difficulty of the tasks."""
        contrasts = [effect.contrast(n) for effect in effects]
        return [c for c in group if all(noise.value(c[0], c[1], one) is not None for one in contrasts)] or group

    equal, paper = having(FREEZING, SPECIFICITY), having(LOST, CO_ADAPTATION)
    among: dict[Effect, Halves] = dict.fromkeys(EFFECTS, group)
    among |= {FREEZING: equal, SPECIFICITY: equal, FROZEN_COST: equal, LOST: paper, CO_ADAPTATION: paper}
    tops = {name: noise.mean((t, seed, level((name, n))) for t, seed, _ in group) for name in TREATMENTS}
    return Row(_effects(noise, among), n, {name: mean for name, mean in tops.items() if mean is not None})


def _effects(noise: Noise, among: Mapping[Effect, Halves]) -> dict[Effect, Estimate]:
    """Return the mean of each effect over its runs; each n of each target is a constant, seeds are the draws."""
    means = {
        effect: noise.mean((target, seed, effect.contrast(n)) for target, seed, n in halves)
        for effect, halves in among.items()
    }
    return {effect: mean for effect, mean in means.items() if mean is not None}


@dataclass(frozen=True)
class Decomposition:
    """The rows that have the `whole` cost of frozen transfer, which is the sum of `first` and SPECIFICITY."""

    whole: Effect
    first: Effect
    rows: tuple[Row, ...]

    @property
    def is_equal(self) -> bool:
        """Return whether it is at equal training; else it is the paper's, from the base."""
        return not self.whole.is_from_base

    @property
    def complete(self) -> tuple[Row, ...]:
        """The rows that have both parts as well."""
        return tuple(row for row in self.rows if {self.first, SPECIFICITY} <= row.effects.keys())


def decompose(recorded: StudyResults, summary: Summary) -> Decomposition:
    """Return the cost of frozen transfer: at equal training unless most runs lack a fine-tuned selffer.

    `summary` is one of `recorded`, of all its targets or of one.
    """
    if equal := tuple(row for row in summary.rows if _is_equal(row)):
        return Decomposition(FROZEN_COST, FREEZING, equal)
    # Where a few runs do have one, the specificity of the summary is over those alone.
    results = [r for r in recorded.results if r.treatment != "selffer+" and r.target in summary.targets]
    rows = summarise(results, score=summary.score, facts=recorded.facts).rows
    return Decomposition(LOST, CO_ADAPTATION, tuple(row for row in rows if row[LOST]))


def _is_equal(row: Row) -> bool:
    transfer, cost = row.top1.get("transfer"), row[FROZEN_COST]
    return cost is not None and transfer is not None and 2 * cost.runs >= transfer.runs
