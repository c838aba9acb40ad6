"""The interval of every difference of a study, by one rule for table, page, figures, advice and verdict.

* 5 or more seeds: Student's interval over the seeds of the quantity itself (`intervals.estimate`).
* 2 to 4 seeds: so few seeds say little about one quantity, but a study has dozens of networks per seed. The noise of a
  network is pooled over the networks of its group, which supposes that they are about equally noisy.
* 1 seed: the sampling error of the validation images, paired image by image. It is a lower bound, because another seed
  moves a network by more than its images do.

docs/decisions/intervals.md gives the reasons and the measured coverage.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fasttransfer.core.intervals import Estimate, estimate, t_quantile
from fasttransfer.report.analysis.effects import PRETRAINED, PRETRAINED_PLUS, TREATMENTS, Contrast, Key
from fasttransfer.study.cells import BASE, BASE_PLUS, RANDOM_HE
from fasttransfer.study.records import Result, Score

Network = tuple[str, int, Key]  # target, seed, (treatment, n)
Runs = Iterable[tuple[str, int, Contrast]]  # target, seed, contrast

OWN_SEEDS = 5  # from here on a quantity has an interval of its own
_NORMAL = 1.959964  # 97.5 % quantile of the normal distribution
# Each a group by itself: random layers are noisy in their own way, and pretrained weights are the same for every seed.
_APART = ("random", RANDOM_HE, PRETRAINED, PRETRAINED_PLUS)


class Noise:
    """The scores of a study, paired by target and seed, and how much each of them may move.

    Args:
        results: all networks of the study; those that are not finished have no score.
        facts: `val_pictures` (target -> number of validation images) is needed for intervals with one seed.
        score: of each network. With one seed the intervals of "best10" come from the images that the last
            check got right, the only ones that are stored.

    Attributes:
        cells: (target, seed, n) of the networks that copy n layers, planned ones included, sorted. base+ is in none.
    """

    def __init__(
        self, results: Iterable[Result], facts: Mapping[str, Any] | None = None, score: Score = "last"
    ) -> None:
        self._images: Mapping[str, int] = (facts or {}).get("val_pictures", {})
        self._scores: dict[Network, float] = {}
        self._finished: dict[Network, Result] = {}
        self._pool = functools.cache(self._compute_pool)
        cells = set()
        for result in results:
            is_base = result.treatment in (BASE, BASE_PLUS)
            if not is_base:
                cells.add((result.target, result.seed, result.n))
            value = result.score(score)
            if value is not None:
                network = (result.target, result.seed, (result.treatment, 0 if is_base else result.n))
                self._scores[network] = value
                self._finished[network] = result
        self.cells = sorted(cells)
        self._keys = sorted({key for _, _, key in self._scores})

    def scores(self, target: str, key: Key) -> dict[int, float]:
        """Return the scores of one cell, seed -> top-1, of finished networks."""
        return {seed: v for (t, seed, k), v in sorted(self._scores.items()) if (t, k) == (target, key)}

    def value(self, target: str, seed: int, contrast: Contrast) -> float | None:
        """Return a contrast between networks of one target and seed; None unless all are finished."""
        if any((target, seed, key) not in self._scores for key, _ in contrast):
            return None
        return math.fsum(weight * self._scores[target, seed, key] for key, weight in contrast)

    def values(self, contrast: Callable[[int], Contrast]) -> dict[tuple[str, int, int], float]:
        """Return `contrast(n)` of each of `cells` that has it, (target, seed, n) -> value."""
        found = {cell: self.value(cell[0], cell[1], contrast(cell[2])) for cell in self.cells}
        return {cell: value for cell, value in found.items() if value is not None}

    def mean(self, runs: Runs, *, unpaired: bool = False) -> Estimate | None:
        """Return the mean of a contrast over runs, each target (and contrast) with its seeds, and its 95 % interval.

        Runs whose networks are not all finished are left out. Weights that do not sum to zero make a level, not a
        difference: the seeds' common share stays in it and it has an interval over seeds only.

        Args:
            runs: (target, seed, contrast), each at most once.
            unpaired: with one seed, where it is not recorded which images per network got right, take the networks'
                errors as independent (binomial), which is too wide rather than too narrow, instead of giving no
                interval.

        Returns:
            None where no run is left.
        """
        values = {run: value for run in sorted(runs) if (value := self.value(*run)) is not None}
        own = estimate((f"{target} {contrast}", seed, value) for (target, seed, contrast), value in values.items())
        if own is None or any(abs(sum(weight for _, weight in contrast)) > 1e-9 for _, _, contrast in values):
            return own
        if own.seeds == 1:
            return self._over_images(own, list(values), unpaired)
        if own.seeds < OWN_SEEDS:
            return self._pooled(own, list(values)) or own
        return own

    def _pooled(self, own: Estimate, runs: Sequence[tuple[str, int, Contrast]]) -> Estimate | None:
        """Return the pooled interval; None where the runs do not allow it.

        They have to be balanced, no network may be stuck, each group needs a pool, and a mean over several n needs
        more than one target: the transfer networks of one target all copy the same base, whose noise a mean over n
        keeps and the pool does not see. Over both targets it cancels, because every base is on both sides.
        """
        targets, seeds, contrasts = (tuple(sorted(set(values))) for values in zip(*runs, strict=True))
        if len(runs) < len(targets) * len(seeds) * len(contrasts) or (len(targets) == 1 and len(contrasts) > 1):
            return None
        weights: dict[Key, float] = defaultdict(float)
        for contrast in contrasts:
            for key, weight in contrast:
                weights[key] += weight / len(contrasts)
        if any(self._is_stuck((target, seed, key)) for target in targets for seed in seeds for key in weights):
            return None
        squares: dict[str, float] = defaultdict(float)
        for key, weight in weights.items():
            squares[_group(key)] += weight * weight / len(seeds)
        pools = {group: self._pool(targets, seeds, group) for group in squares}
        if not all(freedom for _, freedom in pools.values()):
            return None
        parts = [(square * pools[group][0], pools[group][1]) for group, square in squares.items()]
        variance = math.fsum(part for part, _ in parts)
        if variance:
            freedom = variance**2 / math.fsum(part * part / freedom for part, freedom in parts)
        else:
            freedom = float(min(freedom for _, freedom in parts))
        half = t_quantile(freedom) * math.sqrt(variance)
        return Estimate(own.value, own.runs, half, own.seeds, freedom, "pooled")

    def _is_stuck(self, network: Network) -> bool:
        return self._finished[network].state == "stuck"

    def _compute_pool(self, targets: tuple[str, ...], seeds: tuple[int, ...], group: str) -> tuple[float, int]:
        """Return the noise variance of one network, averaged over `targets`, and its degrees of freedom (0: no pool).

        The scores are averaged over the targets first: what the two targets of a seed have in common, whatever its
        sign, is then part of the noise that is measured.
        """
        rows = []
        for key in self._keys:
            networks = [[(target, seed, key) for target in targets] for seed in seeds]
            flat = [network for row in networks for network in row]
            if _group(key) == group and all(one in self._scores and not self._is_stuck(one) for one in flat):
                rows.append([math.fsum(self._scores[one] for one in row) / len(targets) for row in networks])
        freedom = max(0, len(rows) - 1) * (len(seeds) - 1)
        variance = 0.0
        if freedom:
            table = np.array(rows)
            # With every cell on every seed, the least squares fit of seed + cell is the sum of their means.
            rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            variance = float((rest**2).sum()) / freedom
        return variance, freedom

    def _over_images(self, own: Estimate, runs: Sequence[tuple[str, int, Contrast]], unpaired: bool) -> Estimate:
        weights: dict[str, dict[Network, float]] = defaultdict(lambda: defaultdict(float))
        for target, seed, contrast in runs:
            for key, weight in contrast:
                weights[target][target, seed, key] += weight / len(runs)
        parts = [self._image_variance(target, found, unpaired) for target, found in weights.items()]
        variances = [part for part in parts if part is not None]
        if len(variances) < len(parts):
            return own
        half = _NORMAL * math.sqrt(math.fsum(variances))
        return Estimate(own.value, own.runs, half, 1, 0.0, "images")

    def _image_variance(self, target: str, weights: Mapping[Network, float], unpaired: bool) -> float | None:
        images = self._images.get(target)
        if not images:
            return None
        bits = [self._bits(network, images) for network in weights]
        known = [found for found in bits if found is not None]
        if len(known) == len(weights):
            each = sum(weight * found for weight, found in zip(weights.values(), known, strict=True))
            return float(np.var(each)) / images
        if not unpaired:
            return None
        spread = (weight**2 * p * (1 - p) for network, weight in weights.items() for p in (self._scores[network],))
        return math.fsum(spread) / images

    def _bits(self, network: Network, images: int) -> npt.NDArray[np.uint8] | None:
        packed = self._finished[network].correct
        if packed is None or len(packed) != (images + 7) // 8:
            return None
        return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=images)


def _group(key: Key) -> str:
    """Return the pool a cell belongs to: everything that starts from a trained base, and the base, is one pool."""
    treatment = key[0]
    assert treatment in (BASE, BASE_PLUS, *TREATMENTS), treatment
    return treatment if treatment in _APART else "trained"
