"""For a task and a base network of another: copy how many layers, freeze them or not, and what it costs.

The choices are training from scratch and the transfer networks, frozen and fine-tuned, at every n that was run.
Selffers and random layers are controls: they explain a result, nobody would deploy them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fasttransfer import cost
from fasttransfer.analysis.intervals import Estimate, estimate, t_quantile
from fasttransfer.analysis.pairs import Drop, Score, class_count, drops
from fasttransfer.cells import Cell
from fasttransfer.errors import InputError
from fasttransfer.records import Recorded
from fasttransfer.study import recipe_from

CHOICES = ("transfer", "transfer+")
NoiseKind = Literal["seeds", "validation", "none"]
Scores = Mapping[tuple[str, int], Mapping[int, float]]  # (treatment, n) -> seed -> top-1; the base's is ("base", 0)
_NORMAL = 1.959964  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Choice:
    """One way to train a network for the target.

    Attributes:
        treatment: "base" (from scratch), "transfer" (copied layers frozen) or "transfer+" (fine-tuned).
        n: layers copied.
        top1: mean over seeds.
        difference: from the base of the same seed; None for the base itself.
        behind: how far behind the best choice, paired by seed; its `half` is what `Advice.noise` says.
        macs: multiply-adds of a training step a picture, the frozen layers' forward pass included; None where the
            study does not say what its network is.
        saves: share of the multiply-adds of training from scratch that are saved.
        faster: how many times as many pictures a second as from scratch, where that was measured.
    """

    treatment: str
    n: int
    top1: Estimate
    difference: Estimate | None
    behind: Estimate
    macs: int | None = None
    saves: float | None = None
    faster: float | None = None

    @property
    def frozen(self) -> bool:
        """Whether the copied layers stay as they are."""
        return self.treatment == "transfer"


@dataclass(frozen=True)
class Advice:
    """What to do for `target`.

    Attributes:
        choices: all that were run, from scratch first, then by treatment and n.
        best: the one with the highest mean; cheapest: the least work of those whose distance from it lies within its
            interval; the best itself where distances have none.
        noise: what the intervals of distances from the best are made of: "seeds", "validation" (one seed: only the
            number of validation pictures, as if two networks' mistakes had nothing in common) or "none".
        selffer: the best fine-tuned selffer's difference from the base, where any was run.
    """

    target: str
    score: Score
    choices: tuple[Choice, ...]
    best: Choice
    cheapest: Choice
    noise: NoiseKind
    selffer: Estimate | None


def advise(recorded: Recorded, target: str, score: Score = "last") -> Advice:
    """The best choice for `target`, and the cheapest that cannot be told from it.

    Distances between choices have intervals of their own: the networks of a seed share its draws, so what is left when
    the means of seeds and choices are taken out is their noise. It is pooled over the choices, which gives few seeds
    enough degrees of freedom (docs/decisions/intervals.md).

    Raises:
        InputError: the study has no such target, or no finished base and transfer network on it.
    """
    targets = sorted({result.target for result in recorded.results})
    if target not in targets:
        raise InputError(f"--target {target}: the study has {', '.join(targets) or 'no targets'}")
    found = [drop for drop in drops(recorded.results, score) if drop.target == target and drop.base is not None]
    scores = _scores(found)
    if len(scores) < 2:
        on_it = [r for r in recorded.results if r.target == target and r.treatment in ("base", *CHOICES)]
        yet = " yet" if any(r.waiting for r in on_it) else ""
        raise InputError(
            f"{recorded.folder}: nothing to advise on {target}{yet}: it takes a finished base and a finished transfer "
            "network of the same seed"
        )
    best_key = max(scores, key=lambda key: _gain(scores, key))
    noise = _noise(scores, recorded.facts.get("val_pictures", {}).get(target))
    works = _work(recorded, target, scores)
    rates = recorded.facts.get("pictures_per_second")
    choices = {}
    for (treatment, n), values in scores.items():
        macs = works.get((treatment, n))
        top1 = estimate((target, seed, value) for seed, value in values.items())
        assert top1 is not None, "a choice without a run is none"
        paired = ((target, seed, value - scores["base", 0][seed]) for seed, value in values.items())
        choices[treatment, n] = Choice(
            treatment,
            n,
            top1,
            None if treatment == "base" else estimate(paired),
            _behind(scores, (treatment, n), best_key, noise),
            macs,
            None if macs is None else 1 - macs / works["base", 0],
            rates[n] / rates[0] if rates and treatment == "transfer" else None,
        )
    best = choices[best_key]
    near = [c for c in choices.values() if c.behind.half is not None and c.behind.value <= c.behind.half]
    cheapest = min([best, *near], key=lambda choice: (_price(choice), choice.behind.value))
    if _price(cheapest) == _price(best):
        cheapest = best
    return Advice(target, score, tuple(choices.values()), best, cheapest, noise.kind, _selffer(found, target))


@dataclass(frozen=True)
class _Noise:
    """What a distance between two choices may be by chance; `deviation` is that of one network's score."""

    kind: NoiseKind
    deviation: float = 0.0
    freedom: int = 0
    pictures: int = 0


def _scores(found: Iterable[Drop]) -> Scores:
    """Finished choices that have a base, and that base."""
    scores: dict[tuple[str, int], dict[int, float]] = {("base", 0): {}}
    for treatment in CHOICES:
        for drop in found:
            if drop.base is not None and treatment in drop.top1:
                scores.setdefault((treatment, drop.n), {})[drop.seed] = drop.top1[treatment]
                scores["base", 0][drop.seed] = drop.base
    return scores


def _gain(scores: Scores, key: tuple[str, int]) -> float:
    """Mean distance of a choice from the base of the same seed."""
    return _mean(value - scores["base", 0][seed] for seed, value in scores[key].items())


def _noise(scores: Scores, pictures: int | None) -> _Noise:
    """Scores as the sum of their choice's mean and their seed's: what is left is noise, over all choices."""
    keys = list(scores)
    seeds = sorted(scores["base", 0])
    runs = [(keys.index(key), seeds.index(seed), value) for key in keys for seed, value in scores[key].items()]
    columns = np.zeros((len(runs), len(keys) + len(seeds)))
    for i, (choice, seed, _) in enumerate(runs):
        columns[i, choice] = columns[i, len(keys) + seed] = 1
    top1 = np.array([value for _, _, value in runs])
    fitted, _, rank, _ = np.linalg.lstsq(columns, top1, rcond=None)
    freedom = len(runs) - int(rank)
    if freedom:
        squares = float(np.sum((top1 - columns @ fitted) ** 2))
        return _Noise("seeds", math.sqrt(squares / freedom), freedom)
    return _Noise("validation", pictures=pictures) if pictures else _Noise("none")


def _behind(scores: Scores, key: tuple[str, int], best_key: tuple[str, int], noise: _Noise) -> Estimate:
    """How far a choice is behind the best: over the seeds that have both, else each against its own seeds' base."""
    ours, best = scores[key], scores[best_key]
    if key == best_key:
        return Estimate(0.0, len(ours), None if noise.kind == "none" else 0.0, len(ours))
    if shared := ours.keys() & best.keys():
        value, share = _mean(best[seed] - ours[seed] for seed in sorted(shared)), 2 / len(shared)
    else:
        value, share = _gain(scores, best_key) - _gain(scores, key), 2 / len(best) + 2 / len(ours)
    half = None
    if noise.kind == "seeds":
        half = t_quantile(noise.freedom) * noise.deviation * math.sqrt(share)
    elif noise.kind == "validation":
        spread = sum(p * (1 - p) for p in (_mean(ours.values()), _mean(best.values())))
        half = _NORMAL * math.sqrt(spread / noise.pictures)
    return Estimate(value, len(ours), half, len(ours), noise.freedom)


def _work(recorded: Recorded, target: str, choices: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Multiply-adds of a training step a picture of each choice; empty where the study does not say enough."""
    table: Any = recorded.study.get("recipe")
    tasks = [*recorded.facts.get("classes", {}), *recorded.facts.get("class_counts", {})]
    counts = {task: count for task in tasks if (count := class_count(recorded.facts, task))}
    if not isinstance(table, Mapping) or target not in counts:
        return {}
    try:
        recipe = recipe_from(table, str(recorded.folder))
    except InputError:
        return {}
    outputs = counts[target] if recipe.outputs == "task" else sum(counts.values())
    return {
        (treatment, n): cost.cohort_macs(recipe.geometry, outputs, [Cell(0, target, treatment, n)])
        for treatment, n in choices
    }


def _price(choice: Choice) -> int:
    """What choices are ordered by: multiply-adds, or the frozen layers where those are not known."""
    if choice.macs is not None:
        return choice.macs
    return -choice.n if choice.frozen else 0


def _selffer(found: Iterable[Drop], target: str) -> Estimate | None:
    by_n: dict[int, list[tuple[str, int, float]]] = {}
    for drop in found:
        if (gained := drop.difference("selffer+")) is not None:
            by_n.setdefault(drop.n, []).append((target, drop.seed, gained))
    means = [mean for runs in by_n.values() if (mean := estimate(runs)) is not None]
    return max(means, key=lambda mean: mean.value, default=None)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
