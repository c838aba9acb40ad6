"""Advice for a task and a base network of another: how many layers to copy, whether to freeze them, and the cost.

The choices are training from scratch, training from scratch twice as long (base+, where the study has it) and the
networks with first stages of the other task or of pretrained weights, frozen and fine-tuned, at every n that was run.
Selffers and random layers are controls: they explain a result, nobody would deploy them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fasttransfer.core.errors import InputError
from fasttransfer.core.intervals import Estimate, NoiseKind, difference
from fasttransfer.report.analysis.effects import PRETRAINED, PRETRAINED_PLUS, Key, level, minus
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.study.cells import BASE, BASE_PLUS, Cell, base
from fasttransfer.study.chance import class_count
from fasttransfer.study.recipe import parse_recipe
from fasttransfer.study.records import Score, StudyResults
from fasttransfer.training import cost

# A choice -> the control that has had the same training, all of it on the task; None where another part tells more.
CONTROLS = {"transfer": None, "transfer+": "selffer+", PRETRAINED: "selffer", PRETRAINED_PLUS: "selffer+"}
CHOICES = tuple(CONTROLS)
_SCRATCH: Key = (BASE, 0)


@dataclass(frozen=True)
class Choice:
    """One way to train a network for the target.

    Attributes:
        treatment: "base" (from scratch), "base+" (from scratch, twice as long), "transfer" or "pretrained" (copied
            layers frozen), "transfer+" or "pretrained+" (fine-tuned).
        n: layers copied; 0 from scratch, however long.
        top1: mean over seeds.
        difference: from the base of the same seed; None for the base itself.
        behind: how far behind the best choice, paired by seed.
        macs: multiply-adds of a training step per image, the frozen layers' forward pass included, twice the base's
            for base+; None where the study does not say what its network is.
        saves: share of the multiply-adds of training from scratch that are saved; -1 for base+.
        faster: how many times as many images per second as from scratch, where that was measured.
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
        """Return whether the copied layers stay as they are."""
        return self.treatment in ("transfer", PRETRAINED)

    @property
    def pretrained(self) -> bool:
        """Return whether the copied layers are those of pretrained weights."""
        return self.treatment in (PRETRAINED, PRETRAINED_PLUS)

    @property
    def price(self) -> int:
        """Return what orders choices by work: multiply-adds, or the frozen layers where those are not known."""
        if self.macs is not None:
            return self.macs
        return 1 if self.treatment == BASE_PLUS else -self.n if self.frozen else 0


@dataclass(frozen=True)
class Advice:
    """The advice for `target`.

    Attributes:
        choices: all that were run, from scratch first, then by treatment and n.
        best: the one with the highest mean; cheapest: the least work of those whose distance from it lies within its
            interval; the best itself where distances have none.
        noise: what the intervals of most distances from the best are made of, as in `Estimate.kind`. "images" where
            the study did not record which images per network got right: as if two networks' errors were independent.
        boost: the best choice minus its control of CONTROLS at the same n, where it has one and that was run: what is
            left of its gain at equal training.
    """

    target: str
    score: Score
    choices: tuple[Choice, ...]
    best: Choice
    cheapest: Choice
    noise: NoiseKind
    boost: Estimate | None


def advise(recorded: StudyResults, target: str, score: Score = "last") -> Advice:
    """Return the best choice for `target`, and the cheapest that cannot be told from it.

    Intervals of distances are those of `fasttransfer.report.analysis.noise.Noise`.

    Raises:
        InputError: the study has no such target, or no finished base and transfer network on it.
    """
    targets = sorted({result.target for result in recorded.results})
    if target not in targets:
        raise InputError(f"--target {target}: the study has {', '.join(targets) or 'no targets'}")
    noise = Noise(recorded.results, recorded.facts, score)
    seeds = _paired_seeds(recorded, noise, target)
    if not any(treatment in CHOICES for treatment, _ in seeds):
        on_it = [r for r in recorded.results if r.target == target and r.treatment in (BASE, *CHOICES)]
        yet = " yet" if any(r.waiting for r in on_it) else ""
        raise InputError(
            f"{recorded.folder}: nothing to advise on {target}{yet}: it takes a finished base and a finished transfer "
            "or pretrained network of the same seed"
        )

    def paired(left: Key, right: Key, among: Iterable[int]) -> Estimate | None:
        return noise.mean(((target, seed, minus(left, right)) for seed in among), unpaired=True)

    gains = {key: gain for key, found in seeds.items() if (gain := paired(key, _SCRATCH, found)) is not None}
    best_key = max(gains, key=lambda key: gains[key].value)

    def behind(key: Key) -> Estimate:
        """Return how far a choice is behind the best: over the seeds that have both, else each against its own bases,
        which makes the two independent."""
        if key == best_key:
            return Estimate(0.0, len(seeds[key]), 0.0, len(seeds[key]))
        return paired(best_key, key, seeds[key] & seeds[best_key]) or difference(gains[best_key], gains[key])

    works = _work(recorded, target, seeds)
    rates = recorded.facts.get("images_per_second")
    choices = {}
    for key, found in seeds.items():
        treatment, n = key
        macs = works.get(key)
        top1 = noise.mean((target, seed, level(key)) for seed in found)
        assert top1 is not None, "a choice without a run is none"
        choices[key] = Choice(
            treatment,
            n,
            top1,
            None if key == _SCRATCH else gains[key],
            behind(key),
            macs,
            None if macs is None else 1 - macs / works[_SCRATCH],
            rates[n] / rates[0] if rates and treatment == "transfer" and n < len(rates) else None,
        )
    kinds = Counter(choice.behind.kind for key, choice in choices.items() if key != best_key)
    best = choices[best_key]
    near = [c for c in choices.values() if c.behind.half is not None and c.behind.value <= c.behind.half]
    cheapest = min([best, *near], key=lambda choice: (choice.price, choice.behind.value))
    if cheapest.price == best.price:
        cheapest = best
    boost = None
    if control := CONTROLS.get(best.treatment):  # also on seeds without a base, which it does not need
        boost = paired(best_key, (control, best.n), noise.scores(target, best_key))
    return Advice(target, score, tuple(choices.values()), best, cheapest, kinds.most_common(1)[0][0], boost)


def _paired_seeds(recorded: StudyResults, noise: Noise, target: str) -> dict[Key, set[int]]:
    """Return the finished choices with their seeds that have a base; the base with the seeds that have a choice."""
    bases = noise.scores(target, _SCRATCH).keys()
    keys = {(r.treatment, r.n) for r in recorded.results if r.target == target and r.treatment in CHOICES}
    found = {key: set(noise.scores(target, key).keys() & bases) for key in [(BASE_PLUS, 0), *sorted(keys)]}
    found = {key: seeds for key, seeds in found.items() if seeds}
    return {_SCRATCH: set().union(*found.values()), **found}


def _work(recorded: StudyResults, target: str, choices: Iterable[Key]) -> dict[Key, int]:
    """Return the multiply-adds of a training step per image of each choice; empty where the study does not say enough.

    Those of base+ are twice those of the base: it takes two schedules.
    """
    table: Any = recorded.study.get("recipe")
    tasks = [*recorded.facts.get("classes", {}), *recorded.facts.get("class_counts", {})]
    counts = {task: count for task in tasks if (count := class_count(recorded.facts, task))}
    if not isinstance(table, Mapping) or target not in counts:
        return {}
    try:
        recipe = parse_recipe(table, str(recorded.folder))
        outputs = counts[target] if recipe.outputs == "task" else sum(counts.values())
        return {
            (treatment, n): 2 * cost.cohort_macs(recipe.network, outputs, [base(target, 0)])
            if treatment == BASE_PLUS
            else cost.cohort_macs(recipe.network, outputs, [Cell(0, target, treatment, n)])
            for treatment, n in choices
        }
    except InputError:  # e.g. the network's library is not installed here
        return {}
