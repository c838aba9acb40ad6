"""Networks that have learned nothing: finite numbers, no better than an even guess. The study lost several so."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fasttransfer.study.records import Evaluation

_NEAR = 0.01  # nats: this close to the loss of an even guess, a network has learned nothing
_MORE = 0.1  # top-1 above chance by this, or by as much again as chance: something was learned, whatever the loss


def at_chance(check: Evaluation, classes: int) -> bool:
    """Whether a network was no better than an even guess among `classes`: by its losses and by top-1.

    An overfitted network passes the loss of an even guess on its way up: it has a top-1, or a training loss, that no
    guesser has. Classes are taken to have about equally many images; where they have not, the loss of guessing is
    lower and a network counts as one that learns.
    """
    if check.val_loss is None:
        return False
    even = math.log(classes) - _NEAR
    guessed = check.val_loss > even and (check.train_loss is None or check.train_loss > even)
    return guessed and check.val_top1 < 1 / classes + min(1 / classes, _MORE)


def hopeless(evaluations: Sequence[Evaluation], classes: int, steps: int, give_up: float) -> bool:
    """Whether a network was at chance in every check so far, and the share `give_up` of its `steps` is done.

    Never after its last step, when there is nothing left to save.
    """
    done = evaluations[-1].step
    return round(give_up * steps) <= done < steps and all(at_chance(check, classes) for check in evaluations)
