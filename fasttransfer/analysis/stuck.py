"""Networks that sit at the loss of an even guess: finite numbers, nothing learned. The study lost several so."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fasttransfer.records import Evaluation, Result

STUCK_SHARE = 0.25  # of its training; every network begins at chance
_NEAR = 0.01  # nats: this close to the loss of an even guess, a network has learned nothing
_MORE = 0.1  # top-1 above chance by this, or by as much again as chance: something was learned, whatever the loss


def share_at_chance(result: Result, classes: int, budget: int | None = None) -> float:
    """The share of its training that `result` spent no better than an even guess among `classes`, in [0, 1].

    Each validation check stands for the steps since the one before. Classes are taken to have about equally many
    validation pictures.

    Args:
        budget: steps of its whole training; those it has done unless given.
    """
    before, lost = 0, 0
    for check in result.evaluations:
        if _at_chance(check, classes):
            lost += check.step - before
        before = check.step
    return lost / (budget or before) if before else 0.0


def stuck(result: Result, classes: int, budget: int | None = None) -> bool:
    """Whether `result` spent more than a quarter of its training at chance, though its loss stayed finite.

    Stuck networks stay in every mean: which networks count is settled before they are trained, not by what becomes of
    them, and the random control may sit at chance by its nature. The report names them.

    A network in training is judged by `budget` only: without it every beginner would be stuck.
    """
    judged = result.state == "done" or (result.state == "running" and budget is not None)
    return judged and share_at_chance(result, classes, budget) > STUCK_SHARE


def budget_of(results: Sequence[Result], target: str) -> int | None:
    """The steps of a whole training on `target`, as a finished network shows; None before there is one."""
    return max((r.steps for r in results if r.target == target and r.state == "done"), default=None)


def recovered(result: Result, classes: int) -> bool:
    """Whether the last check of `result` is better than chance."""
    return bool(result.evaluations) and not _at_chance(result.evaluations[-1], classes)


def _at_chance(check: Evaluation, classes: int) -> bool:
    """By loss and by top-1: an overfitted network passes the loss of an even guess on its way up, and is no guesser."""
    if check.val_loss is None:
        return False
    return check.val_loss > math.log(classes) - _NEAR and check.val_top1 < 1 / classes + min(1 / classes, _MORE)
