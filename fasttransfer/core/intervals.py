"""Means over few runs, with confidence intervals.

A repeated study would draw other seeds for the same two tasks. So the seed is the unit, and runs that share a seed
count as one draw, whatever they have in common (the two directions of a seed share both bases, those of a random split
its classes as well). docs/decisions/intervals.md has the reasons and measurements.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

NoiseKind = Literal["seeds", "pooled", "images", "none"]
Run = tuple[str, int]  # target (or another constant: a cut of a target), seed


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Attributes:
        value: the mean.
        runs: number of networks or differences.
        half: half the width of the 95 % interval, None if the runs do not give one.
        seeds: number of seeds.
        freedom: degrees of freedom of an interval over seeds, 0 without one.
        kind: the source of `half`: "seeds" (those of the quantity itself), "pooled" (the noise of all networks of a few
            seeds), "images" (one seed: the sampling of validation images, a lower bound) or "none".
    """

    value: float
    runs: int
    half: float | None = None
    seeds: int = 1
    freedom: float = 0.0
    kind: NoiseKind = "none"

    @property
    def error(self) -> float | None:
        """Return the standard error; None without an interval over seeds."""
        return None if self.half is None or not self.freedom else self.half / t_quantile(self.freedom)


def estimate(values: Iterable[tuple[str, int, float]]) -> Estimate | None:
    """Return the mean of (target, seed, value), one per run, with its 95 % interval; None without runs.

    The interval is Student's, over seeds: for the mean over other seeds of the same tasks. If every target has every
    seed, it is the plain t interval of the seeds' means, exact whatever runs of one seed have in common. If runs are
    missing, targets are subtracted as constants, each seed's sum of residuals is scaled to be unbiased (Bell and
    McCaffrey 2002) and the degrees of freedom are Satterthwaite's. There is no interval if a target has a single seed.
    """
    runs = sorted(values)
    if not runs:
        return None
    top1 = np.array([value for _, _, value in runs])
    mean = math.fsum(top1) / len(runs)
    design = tuple((target, seed) for target, seed, _ in runs)
    seeds = len({seed for _, seed in design})
    parts, freedom = seed_parts(design)
    if not freedom:
        return Estimate(mean, len(runs), None, seeds)
    error = math.sqrt(math.fsum((parts @ (top1 - mean)) ** 2))
    return Estimate(mean, len(runs), t_quantile(freedom) * error, seeds, freedom, "seeds")


@lru_cache
def seed_parts(design: tuple[Run, ...]) -> tuple[npt.NDArray[np.float64], float]:
    """Return the part of `estimate` that depends on which runs there are, not on their values.

    Returns:
        a (seeds, runs) matrix: the squares of its product with the runs' values sum to the squared standard error of
        the mean; and the degrees of freedom, 0 if there is no error.
    """
    counts = Counter(target for target, _ in design)
    seeds = sorted({seed for _, seed in design})
    parts = np.zeros((len(seeds), len(design)))
    if min(counts.values()) < 2:
        return parts, 0.0
    same = np.array([[a == b for b, _ in design] for a, _ in design]) / np.array([counts[t] for t, _ in design])
    for i, (target, seed) in enumerate(design):
        scale = 1 / math.sqrt(1 - 1 / counts[target])
        parts[seeds.index(seed)] += scale * (np.eye(len(design))[i] - same[i]) / len(design)
    products = parts @ parts.T
    return parts, float(np.trace(products) ** 2 / np.sum(products**2))


def difference(left: Estimate, right: Estimate) -> Estimate:
    """Return `left` - `right` of two studies that share no run, with Welch's interval.

    If one study has an interval and the other a single seed with as many runs, that seed is assumed to vary like the
    first study's seeds: the interval then says how far one more seed of the first study would fall from its mean.
    """
    value = left.value - right.value
    seeds = min(left.seeds, right.seeds)
    a, b = left.error, right.error
    if a is not None and b is not None:
        squares = a * a + b * b
        freedom = squares**2 / (a**4 / left.freedom + b**4 / right.freedom) if squares else left.freedom
    else:
        error, known, single = (a, left, right) if b is None else (b, right, left)
        if error is None or single.seeds > 1 or single.runs * known.seeds != known.runs:
            return Estimate(value, left.runs + right.runs, None, seeds)
        squares, freedom = error * error * (known.seeds + 1), known.freedom
    half = t_quantile(freedom) * math.sqrt(squares)
    kind: NoiseKind = "pooled" if "pooled" in (left.kind, right.kind) else "seeds"
    return Estimate(value, left.runs + right.runs, half, seeds, freedom, kind)


@lru_cache
def t_quantile(freedom: float, probability: float = 0.975) -> float:
    """Return a quantile of Student's t distribution.

    Args:
        freedom: degrees of freedom, above 0, whole or not.
        probability: of a value below the quantile, in (0, 1).
    """
    # Imported here: it takes 0.3 s, which commands that show no interval (such as --help) need not spend.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
