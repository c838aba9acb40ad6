"""Means over few runs, and how far they can be trusted.

What is drawn again, were a study repeated, is a seed: of two tasks, the same two. So the seed is the unit, and runs
that share a seed count as one draw, whatever they have in common (the two directions of a seed share both bases, those
of a random split its classes as well). docs/decisions/intervals.md has the reasons and what was measured.
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
        runs: how many networks or differences it is taken over.
        half: half the width of its 95 % interval, None where the runs cannot give one.
        seeds: how many seeds are behind it.
        freedom: the degrees of freedom of an interval over seeds, 0 without one.
        kind: what `half` is made of: "seeds" (those of the quantity itself), "pooled" (the noise of all networks of
            a few seeds), "images" (one seed: the sampling of validation images, a lower bound) or "none".
    """

    value: float
    runs: int
    half: float | None = None
    seeds: int = 1
    freedom: float = 0.0
    kind: NoiseKind = "none"

    @property
    def error(self) -> float | None:
        """The standard error; None without an interval over seeds."""
        return None if self.half is None or not self.freedom else self.half / t_quantile(self.freedom)


def estimate(values: Iterable[tuple[str, int, float]]) -> Estimate | None:
    """The mean of (target, seed, value), one a run, with its 95 % interval; None where there are none.

    The interval is Student's, over seeds: for the mean over other seeds of the same tasks. Where every target has every
    seed it is the plain t interval of the seeds' means, exact whatever runs of one seed have in common. Where runs are
    missing, targets are taken out as constants, each seed's sum of what is left is scaled to be unbiased (Bell and
    McCaffrey 2002) and the degrees of freedom are Satterthwaite's. There is none where a target has one seed only.
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
    """What depends on which runs there are, not on their values.

    Returns:
        (seeds, runs): times the runs' values, the squares of the result sum to the squared standard error of the mean;
        and its degrees of freedom, 0 where there is none.
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
    """`left` - `right` of two studies that share no run, with Welch's interval.

    Where one of them has an interval and the other a single seed with as many runs, that seed is taken to vary as the
    other study's do: the interval then says how far one more seed of that study would fall from its mean.
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
    # Imported here: it takes 0.3 s, which commands that show no interval (--help among them) would spend for nothing.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
