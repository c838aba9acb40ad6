"""The sentence on the bases that every output of a study begins with: had they finished learning?

Networks with copied layers have had the base's training and their own. Where the base could still learn, a difference
from it measures that missing training too, whatever its name; base+, the base trained on for one more schedule,
shows how much that is.
"""

from __future__ import annotations

from dataclasses import dataclass

from fasttransfer.core.intervals import Estimate
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.report.analysis.summary import gain_of, targets_of
from fasttransfer.report.numbers import decimals, is_within_noise, points, signed
from fasttransfer.study import paper
from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.records import Score, StudyResults

GAIN_LIMIT = 0.01  # top-1; the smallest published effects are a third of it, most are above
_TOLERANCE = 1e-9  # 0.71 - 0.70 is a little more than 0.01


@dataclass(frozen=True)
class Verdict:
    """The sentence; the gain of base+ over the base, paired, mean over targets and seeds; and what follows from it.

    `finished`: the gain is neither above its interval nor above GAIN_LIMIT; without an interval only the limit counts.
    `gain` and `finished` are None where no base+ is finished beside its base.
    """

    text: str
    gain: Estimate | None = None
    finished: bool | None = None

    @property
    def is_bad(self) -> bool:
        """Return whether the bases had not finished learning."""
        return self.finished is False


def verdict(recorded: StudyResults, score: Score = "last", target: str | None = None) -> Verdict | None:
    """Return the verdict on the bases of all tasks, or of `target` alone; None before any network is finished.

    With one seed the interval is that of the validation images; where the study did not record which images per network
    got right, that of two networks whose errors are independent.
    """
    results = [result for result in recorded.results if target in (None, result.target)]
    if not any(result.trained for result in results):
        return None
    targets = targets_of(recorded.results) if target is None else (target,)
    noise = Noise(recorded.results, recorded.facts, score)
    gain = gain_of(noise, targets)
    bases, they, them = ("bases", "they gain", "them") if target is None else (f"base of {target}", "it gains", "it")
    if gain is None:
        return Verdict(_unknown(recorded, bases, any(r.treatment == BASE_PLUS for r in results)))
    tasks = {one: found for one in targets if (found := gain_of(noise, (one,))) is not None}
    digits = decimals(recorded.facts, list(tasks))
    each = ", ".join(f"{task} {points(one.value, digits)}" for task, one in tasks.items())
    each = f" ({each})" if len(tasks) > 1 else ""
    amount = signed(gain, digits)
    above_limit = gain.value > GAIN_LIMIT + _TOLERANCE
    above_noise = gain.half is not None and gain.value > gain.half + _TOLERANCE
    finished = not (above_limit or above_noise)
    if finished:
        doubt = "" if gain.half is not None and gain.half <= GAIN_LIMIT else ", as far as these runs can tell"
        text = f"had finished learning{doubt}: one more schedule (base+) changes {them} by {amount} points{each}."
    elif is_within_noise(gain):
        limit = points(GAIN_LIMIT, 0).removeprefix("+")
        text = (
            f"may not have finished learning: trained on for one more schedule (base+) {they} {amount} points{each}, "
            f"not distinguishable from zero, but more than the {limit} point of a base that has. Differences from the "
            "base may measure missing training too."
        )
    else:
        text = (
            f"had not finished learning: trained on for one more schedule (base+) {they} {amount.removeprefix('+')} "
            f"points{each}. Differences from the base measure that missing training too."
        )
    return Verdict(f"The {bases} {text}", gain, finished)


def _unknown(recorded: StudyResults, bases: str, is_planned: bool) -> str:
    whether = f"Whether the {bases} had finished learning"
    if is_planned:
        return f"{whether} is not known yet: no base+ is done."
    if recorded.facts.get("source") == paper.SOURCE:
        steps = max((r.steps for r in recorded.results if r.treatment == BASE), default=0)
        return f"{whether} was not measured: the paper has no base+; its networks trained {steps:,} steps."
    return f"{whether} was not measured: the study has no base+."
