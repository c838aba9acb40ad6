"""The top-1 of guessing, and networks that are no better: finite losses, nothing learned. The paper lost several so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fasttransfer.study.chance import is_at_chance
from fasttransfer.study.records import Result

STUCK_SHARE = 0.25  # of its training; every network begins at chance


def class_count(facts: Mapping[str, Any], target: str) -> int | None:
    """Return the number of classes of the target; None where that is not recorded.

    Where the seeds of a study are splits, the classes differ between seeds and only their number is recorded.
    """
    classes = facts.get("classes", {}).get(target)
    return len(classes) if classes else facts.get("class_counts", {}).get(target)


def mean_chance(facts: Mapping[str, Any], targets: Sequence[str]) -> float | None:
    """Return the top-1 of guessing, 1 / classes, mean over `targets`; None where one of them is not recorded."""
    counts = [class_count(facts, target) for target in targets]
    levels = [1 / count for count in counts if count]
    return math.fsum(levels) / len(levels) if levels and len(levels) == len(targets) else None


def share_at_chance(result: Result, classes: int, budget: int | None = None) -> float:
    """Return the share of its training that `result` spent no better than an even guess among `classes`, in [0, 1].

    Each validation check stands for the steps since the one before.

    Args:
        budget: steps of its whole training; those it has done unless given.
    """
    before, lost = 0, 0
    for check in result.evaluations:
        if is_at_chance(check, classes):
            lost += check.step - before
        before = check.step
    return lost / (budget or before) if before else 0.0


def stuck(result: Result, classes: int | None, budget: int | None = None) -> bool:
    """Return whether `result` spent more than a quarter of its training at chance, though its loss stayed finite.

    A network whose training was ended for it is stuck, however early that was. False where `classes` are not recorded.
    Stuck networks stay in every mean: which networks count is settled before they are trained, not by what becomes of
    them, and the random control may sit at chance by its nature. The report names them.

    A network in training is judged by `budget` only: without it every beginner would be stuck.
    """
    if classes is None:
        return False
    if result.state == "stuck":
        return True
    judged = result.state == "done" or (result.state == "running" and budget is not None)
    return judged and share_at_chance(result, classes, budget) > STUCK_SHARE


def budget_of(results: Sequence[Result], target: str) -> int | None:
    """Return the steps of a whole training on `target`, those of a finished network; None before there is one."""
    return max((r.steps for r in results if r.target == target and r.state == "done"), default=None)


def recovered(result: Result, classes: int) -> bool:
    """Return whether the last check of `result` is better than chance."""
    return bool(result.evaluations) and not is_at_chance(result.evaluations[-1], classes)
