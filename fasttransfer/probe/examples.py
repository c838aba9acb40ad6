"""The training images that heads learn from, those held out meanwhile, and the order of batches.

Every draw is a function of the seed, never of the network, the cut, or the rest of the sweep, so that cuts are compared
on the same examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fasttransfer.core import randomness
from fasttransfer.core.errors import InputError

STEPS = 300
BATCH = 64
"""The smallest batch, where there are as many examples."""
EPOCHS = 10
"""The fewest passes over the examples: batches grow where BATCH * STEPS images would be fewer."""
FOLDS = 5
MANY = 25
"""Examples per class from which on a single held-out part is enough to choose a head by."""


@dataclass(frozen=True, eq=False)
class ExampleSet:
    """The examples that a stack of heads learns from.

    Attributes:
        per_class: examples per class before any are held out, None for all.
        seed: number of the draw; fold: number of the held-out part, None for none.
        rows, held_out: (n,) and (m,) int64, rows of the training images, those learned from and those held out.
    """

    per_class: int | None
    seed: int
    fold: int | None
    rows: Tensor
    held_out: Tensor

    @property
    def batch(self) -> int:
        """Return the number of examples per step."""
        return min(len(self.rows), max(BATCH, -(-EPOCHS * len(self.rows) // STEPS)))

    def batches(self) -> Iterator[Tensor]:
        """Yield (B,) int64 positions in `rows` for each of STEPS steps.

        Every epoch has an order of its own, and batches run on across the ends of epochs. Up to BATCH examples are all
        in every batch.
        """
        n, batch = len(self.rows), self.batch
        if n == batch:
            yield from [torch.arange(n)] * STEPS
            return
        key = randomness.key(self.seed, "probe-order", str(self.per_class), str(self.fold))
        left, epoch = torch.empty(0, dtype=torch.int64), 0
        for _ in range(STEPS):
            while len(left) < batch:
                left = torch.cat([left, randomness.permutation(key, n, at=epoch)])
                epoch += 1
            yield left[:batch]
            left = left[batch:]


def count_folds(per_class: int) -> int:
    """Return the number of parts of a class's examples, of which one at a time is held out; 0 for a single example."""
    return 0 if per_class == 1 else min(FOLDS, per_class)


def draw_example_sets(
    labels: Tensor, classes: Sequence[str], examples: Sequence[int | None], seeds: Sequence[int]
) -> list[ExampleSet]:
    """Return, for each number of examples and each seed, the set of all examples, and the sets without a held-out part.

    The examples of a class are the first of its images in an order that the seed draws, so 5 examples include the 2. In
    that order, every fifth (or every second) belongs to one part. Each part is held out once; from MANY examples per
    class on, only the first part.

    Args:
        labels: (N,) int64 of the training images.
        classes: names of the classes.
        examples: numbers of examples per class, None for all.

    Raises:
        InputError: a class has fewer images than the largest number of examples.
    """
    of_class = [torch.nonzero(labels == label).view(-1) for label in range(len(classes))]
    fewest, name = min((len(rows), name) for rows, name in zip(of_class, classes, strict=True))
    most = max((k for k in examples if k is not None), default=0)
    if most > fewest:
        raise InputError(
            f"--examples {most}: class {name} has {fewest} training images: ask for {fewest} or fewer, or all"
        )
    sets = []
    for seed in seeds:
        orders = [
            rows[randomness.permutation(randomness.key(seed, "probe-examples", name), len(rows))]
            for rows, name in zip(of_class, classes, strict=True)
        ]
        for per_class in examples:
            drawn = [order[:per_class] for order in orders]
            sets.append(ExampleSet(per_class, seed, None, torch.cat(drawn), labels.new_empty(0)))
            parts = count_folds(per_class or fewest)
            for fold in range(parts if (per_class or fewest) < MANY else 1):
                rest = [rows[torch.arange(len(rows)) % parts != fold] for rows in drawn]
                held_out = [rows[fold::parts] for rows in drawn]
                sets.append(ExampleSet(per_class, seed, fold, torch.cat(rest), torch.cat(held_out)))
    return sets
