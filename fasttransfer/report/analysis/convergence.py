"""The verdict that every other difference depends on: had the bases finished learning?

base+ is the base trained on for one more full schedule. What it gains over its base, any copied network gains too, for
it starts from a trained base and is trained for as long. A study whose bases had not finished therefore overstates what
its copied networks owe to the copied layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fasttransfer.core.intervals import Estimate
from fasttransfer.report.analysis.effects import GAIN
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.report.analysis.pairs import Score, targets_of
from fasttransfer.study.cells import BASE_PLUS
from fasttransfer.study.records import Result

GAIN_LIMIT = 0.01  # top-1; the smallest published effects are a third of it, most are above
_TOLERANCE = 1e-9  # 0.71 - 0.70 is a little more than 0.01


@dataclass(frozen=True)
class Convergence:
    """What one more schedule of training gives the bases.

    Attributes:
        gain: base+ minus base, paired, mean over targets and seeds.
        tasks: the same for each target.
        finished: whether the bases had finished learning: the gain is neither above its interval nor above GAIN_LIMIT.
            Without an interval only the limit counts.
    """

    gain: Estimate
    tasks: Mapping[str, Estimate]
    finished: bool


def convergence(
    results: Iterable[Result],
    facts: Mapping[str, Any] | None = None,
    score: Score = "last",
    target: str | None = None,
) -> Convergence | None:
    """Return the verdict on all targets of a study, or on `target`; None where no base+ is finished beside its base.

    With one seed the interval is that of the validation images; where the study did not record which images per network
    got right, that of two networks whose errors are independent.
    """
    results = tuple(results)
    noise = Noise(results, facts, score)
    targets = targets_of(results) if target is None else (target,)
    gain = gain_of(noise, targets)
    if gain is None:
        return None
    tasks = {one: found for one in targets if (found := gain_of(noise, (one,))) is not None}
    above_limit = gain.value > GAIN_LIMIT + _TOLERANCE
    above_noise = gain.half is not None and gain.value > gain.half + _TOLERANCE
    return Convergence(gain, tasks, not (above_limit or above_noise))


def gain_of(noise: Noise, targets: Iterable[str]) -> Estimate | None:
    """Return base+ minus base over `targets`."""
    runs = ((target, seed, GAIN.contrast(0)) for target in targets for seed in noise.scores(target, (BASE_PLUS, 0)))
    return noise.mean(runs, unpaired=True)
