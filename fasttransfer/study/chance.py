"""Detection of networks that have learned nothing: their losses are finite, but no better than an even guess.

Several networks of Yosinski et al. 2014 ended so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fasttransfer.study.records import Evaluation

LOSS_MARGIN = 0.01
"""Nats: this close to the loss of an even guess, a network has learned nothing."""
_TOP1_MARGIN = 0.1  # top-1 above chance by this, or twice chance: the network has learned something, whatever its loss


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
