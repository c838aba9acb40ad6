"""Networks that sit at the loss of an even guess: finite numbers, nothing learned. The study lost several so."""

from __future__ import annotations

from collections.abc import Sequence

from fasttransfer.study.chance import is_at_chance
from fasttransfer.study.records import Result

STUCK_SHARE = 0.25  # of its training; every network begins at chance


def share_at_chance(result: Result, classes: int, budget: int | None = None) -> float:
    """The share of its training that `result` spent no better than an even guess among `classes`, in [0, 1].

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


def stuck(result: Result, classes: int, budget: int | None = None) -> bool:
    """Whether `result` spent more than a quarter of its training at chance, though its loss stayed finite.

    Those whose training was ended for it are stuck, however early that was.
    Stuck networks stay in every mean: which networks count is settled before they are trained, not by what becomes of
    them, and the random control may sit at chance by its nature. The report names them.

    A network in training is judged by `budget` only: without it every beginner would be stuck.
    """
    if result.state == "stuck":
        return True
    judged = result.state == "done" or (result.state == "running" and budget is not None)
    return judged and share_at_chance(result, classes, budget) > STUCK_SHARE


def budget_of(results: Sequence[Result], target: str) -> int | None:
    """The steps of a whole training on `target`, as a finished network shows; None before there is one."""
    return max((r.steps for r in results if r.target == target and r.state == "done"), default=None)


def recovered(result: Result, classes: int) -> bool:
    """Whether the last check of `result` is better than chance."""
    return bool(result.evaluations) and not is_at_chance(result.evaluations[-1], classes)
