"""The interval of every difference of a study, by one rule for table, page, figures, advice and verdict.

* 5 or more seeds: Student's interval over the seeds of the quantity itself (`intervals.estimate`).
* 2 to 4 seeds: so few seeds say little about one quantity, but a study has dozens of networks per seed. The noise of a
  network is pooled over the networks of its group, which supposes that they are about equally noisy.
* 1 seed: the sampling error of the validation images, paired image by image. It is a lower bound, because another seed
  moves a network by more than its images do.

docs/decisions/intervals.md gives the reasons and the measured coverage.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fasttransfer.core.intervals import Estimate, estimate, t_quantile
from fasttransfer.report.analysis.effects import Contrast, Key
from fasttransfer.report.analysis.pairs import Score, score_of
from fasttransfer.study.cells import ALL_TREATMENTS, BASE, BASE_PLUS, RANDOM_HE
from fasttransfer.study.records import Result

Runs = Iterable[tuple[str, int, Contrast]]  # target, seed, contrast

OWN_SEEDS = 5  # from here on a quantity has an interval of its own
_NORMAL = 1.959964  # 97.5 % quantile of the normal distribution
_APART = ("random", RANDOM_HE)  # random layers are noisy in their own way; each of these is a group by itself


class Noise:
    """The scores of a study and how much each of them may move.

    Args:
        results: all networks of the study; those that are not finished are ignored.
        facts: `val_pictures` (target -> number of validation images) is needed for intervals with one seed.
        score: what a network is judged by. With one seed the intervals of "best10" come from the images that the last
            check got right, the only ones that are stored.
    """

    def __init__(
        self, results: Iterable[Result], facts: Mapping[str, Any] | None = None, score: Score = "last"
    ) -> None:
        self._images: Mapping[str, int] = (facts or {}).get("val_pictures", {})
        self._scores: dict[tuple[str, int, Key], float] = {}
        self._correct: dict[tuple[str, int, Key], bytes] = {}
        self._stuck: set[tuple[str, int, Key]] = set()
        self._pools: dict[tuple[tuple[str, ...], tuple[int, ...], str], tuple[float, int]] = {}
        for result in results:
            value = score_of(result, score)
            if value is None:
                continue
            key = (result.treatment, 0 if result.treatment in (BASE, BASE_PLUS) else result.n)
            network = (result.target, result.seed, key)
            self._scores[network] = value
            if result.correct is not None:
                self._correct[network] = result.correct
            if result.state == "stuck":
                self._stuck.add(network)
        self._keys = sorted({key for _, _, key in self._scores})

    def scores(self, target: str, key: Key) -> dict[int, float]:
        """Return the scores of one cell, seed -> top-1, of finished networks."""
        return {seed: v for (t, seed, k), v in sorted(self._scores.items()) if (t, k) == (target, key)}

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
        whole = sorted(run for run in runs if all((run[0], run[1], key) in self._scores for key, _ in run[2]))
        own = estimate(
            (f"{target} {contrast}", seed, self._value(target, seed, contrast)) for target, seed, contrast in whole
        )
        if own is None or any(abs(sum(weight for _, weight in contrast)) > 1e-9 for _, _, contrast in whole):
            return own
        if own.seeds == 1:
            return self._over_images(own, whole, unpaired)
        if own.seeds < OWN_SEEDS:
            return self._pooled(own, whole) or own
        return own

    def _value(self, target: str, seed: int, contrast: Contrast) -> float:
        return math.fsum(weight * self._scores[target, seed, key] for key, weight in contrast)

    def _pooled(self, own: Estimate, runs: Sequence[tuple[str, int, Contrast]]) -> Estimate | None:
        """Return the pooled interval; None where the runs do not allow it.

        They have to be balanced, no network may be stuck, each group needs a pool, and a mean over several n needs
        more than one target: the transfer networks of one target all copy the same base, whose noise a mean over n
        keeps and the pool does not see. Over both targets it cancels, because every base is on both sides.
        """
        seeds_of: dict[tuple[str, Contrast], list[int]] = defaultdict(list)
        contrasts: dict[str, set[Contrast]] = defaultdict(set)
        for target, seed, contrast in runs:
            seeds_of[target, contrast].append(seed)
            contrasts[target].add(contrast)
        seeds, targets = tuple(sorted({seed for _, seed, _ in runs})), tuple(sorted(contrasts))
        shared = contrasts[targets[0]]
        balanced = all(tuple(found) == seeds for found in seeds_of.values())
        if not balanced or any(contrasts[target] != shared for target in targets):
            return None
        if len(targets) == 1 and len(shared) > 1:
            return None
        weights: dict[Key, float] = defaultdict(float)
        for contrast in sorted(shared):
            for key, weight in contrast:
                weights[key] += weight / len(shared)
        if any((target, seed, key) in self._stuck for target in targets for seed in seeds for key in weights):
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

    def _pool(self, targets: tuple[str, ...], seeds: tuple[int, ...], group: str) -> tuple[float, int]:
        """Return the noise variance of one network, averaged over `targets`, and its degrees of freedom (0: no pool).

        The scores are averaged over the targets first: what the two targets of a seed have in common, whatever its
        sign, is then part of the noise that is measured.
        """
        found = self._pools.get((targets, seeds, group))
        if found is not None:
            return found
        rows = []
        for key in self._keys:
            networks = [[(target, seed, key) for target in targets] for seed in seeds]
            flat = [network for row in networks for network in row]
            if _group(key) == group and all(one in self._scores and one not in self._stuck for one in flat):
                rows.append([math.fsum(self._scores[one] for one in row) / len(targets) for row in networks])
        freedom = max(0, len(rows) - 1) * (len(seeds) - 1)
        variance = 0.0
        if freedom:
            table = np.array(rows)
            # With every cell on every seed, the least squares fit of seed + cell is the sum of their means.
            rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            variance = float((rest**2).sum()) / freedom
        self._pools[targets, seeds, group] = variance, freedom
        return variance, freedom

    def _over_images(self, own: Estimate, runs: Sequence[tuple[str, int, Contrast]], unpaired: bool) -> Estimate:
        weights: dict[str, dict[tuple[str, int, Key], float]] = defaultdict(lambda: defaultdict(float))
        for target, seed, contrast in runs:
            for key, weight in contrast:
                weights[target][target, seed, key] += weight / len(runs)
        parts = [self._image_variance(target, found, unpaired) for target, found in weights.items()]
        variances = [part for part in parts if part is not None]
        if len(variances) < len(parts):
            return own
        half = _NORMAL * math.sqrt(math.fsum(variances))
        return Estimate(own.value, own.runs, half, 1, 0.0, "images")

    def _image_variance(
        self, target: str, weights: Mapping[tuple[str, int, Key], float], unpaired: bool
    ) -> float | None:
        images = self._images.get(target)
        if not images:
            return None
        bits = [self._bits(network, images) for network in weights]
        if all(found is not None for found in bits):
            each = sum(
                weight * found for weight, found in zip(weights.values(), bits, strict=True) if found is not None
            )
            return float(np.var(each)) / images
        if not unpaired:
            return None
        spread = (weight**2 * p * (1 - p) for network, weight in weights.items() for p in (self._scores[network],))
        return math.fsum(spread) / images

    def _bits(self, network: tuple[str, int, Key], images: int) -> npt.NDArray[np.uint8] | None:
        packed = self._correct.get(network)
        if packed is None or len(packed) != (images + 7) // 8:
            return None
        return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=images)


def _group(key: Key) -> str:
    """Return the pool a cell belongs to: everything that starts from a trained base, and the base, is one pool."""
    treatment = key[0]
    assert treatment in (BASE, BASE_PLUS, *ALL_TREATMENTS), treatment
    return treatment if treatment in _APART else "trained"
