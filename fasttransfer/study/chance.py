"""The top-1 of guessing, and networks that are no better: their losses are finite, but they have learned nothing.

Several networks of Yosinski et al. 2014 ended so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fasttransfer.study.records import Evaluation, Result

LOSS_MARGIN = 0.01
"""Nats: this close to the loss of an even guess, a network has learned nothing."""
STUCK_SHARE = 0.25
"""A network that is at chance for more than this share of its training is stuck; every network begins at chance."""
_TOP1_MARGIN = 0.1  # top-1 above chance by this, or twice chance: the network has learned something, whatever its loss


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


def is_at_chance(check: Evaluation, classes: int) -> bool:
    """Return whether a network was no better than an even guess among `classes`, by its losses and its top-1.

    The validation loss of an overfitted network passes that of an even guess on its way up, but its top-1 or training
    loss is better than guessing. Classes are taken to have about equally many images; where they do not, the loss of
    guessing is lower and a network at chance counts as one that learns.
    """
    if check.val_loss is None:
        return False
    limit = math.log(classes) - LOSS_MARGIN
    is_loss_of_guessing = check.val_loss > limit and (check.train_loss is None or check.train_loss > limit)
    return is_loss_of_guessing and check.val_top1 < 1 / classes + min(1 / classes, _TOP1_MARGIN)


def is_hopeless(evaluations: Sequence[Evaluation], classes: int, steps: int, give_up: float) -> bool:
    """Return whether a network was at chance in every check so far, with the share `give_up` of its `steps` done.

    False after the last step, when there is no training left to save.
    """
    done = evaluations[-1].step
    return round(give_up * steps) <= done < steps and all(is_at_chance(check, classes) for check in evaluations)


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
