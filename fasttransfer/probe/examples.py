"""Which training images per head learns from, which are held out meanwhile, and in what order they come.

Every draw is a function of the seed: never of the network, the cut, or what else is in the sweep, so that cuts are
compared on the same examples.
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
EPOCHS = 10  # at least: where there are more examples than BATCH * STEPS covers so often, batches are larger
FOLDS = 5
MANY = 25  # examples per class from which on one part of them is enough to choose by


@dataclass(frozen=True, eq=False)
class ExampleSet:
    """What a stack of heads learns from, one after the other batch of it.

    Attributes:
        per_class: examples of each class before any are held out, None for all there are.
        seed: which draw of them; fold: which part is held out, None for none.
        rows, held_out: (n,) and (m,) int64, rows of the training images, those learned from and those held out.
    """

    per_class: int | None
    seed: int
    fold: int | None
    rows: Tensor
    held_out: Tensor

    @property
    def batch(self) -> int:
        """Examples a step."""
        return min(len(self.rows), max(BATCH, -(-EPOCHS * len(self.rows) // STEPS)))

    def batches(self) -> Iterator[Tensor]:
        """(B,) int64 positions in `rows` of each of STEPS steps.

        Epoch after epoch in an order of its own, running on across their ends; all the examples at every step where
        there are no more than BATCH.
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
    """Into how many parts the examples of a class are cut, of which one is held out: into none of a single example."""
    return 0 if per_class == 1 else min(FOLDS, per_class)


def draw_example_sets(
    labels: Tensor, classes: Sequence[str], examples: Sequence[int | None], seeds: Sequence[int]
) -> list[ExampleSet]:
    """Everything that is learned on: for each number of examples and seed all of them, and all but a part held out.

    The examples of a class are the first of its images in an order that the seed draws: those of 5 include those of
    2. In that order every fifth belongs to one part, or every second. Each part is held out once, of MANY examples a
    class and more the first alone.

    Args:
        labels: (N,) int64 of the training images.
        classes: their names.

    Raises:
        InputError: a class with fewer images than are asked for.
    """
    of_class = [torch.nonzero(labels == label).view(-1) for label in range(len(classes))]
    few, name = min((len(rows), name) for rows, name in zip(of_class, classes, strict=True))
    most = max((k for k in examples if k is not None), default=0)
    if most > few:
        raise InputError(f"--examples {most}: class {name} has {few} training images: ask for {few} or fewer, or all")
    lessons = []
    for seed in seeds:
        orders = [
            rows[randomness.permutation(randomness.key(seed, "probe-examples", name), len(rows))]
            for rows, name in zip(of_class, classes, strict=True)
        ]
        for per_class in examples:
            chosen = [order[:per_class] for order in orders]
            lessons.append(ExampleSet(per_class, seed, None, torch.cat(chosen), labels.new_empty(0)))
            parts = count_folds(per_class or few)
            for fold in range(parts if (per_class or few) < MANY else 1):
                kept = [rows[torch.arange(len(rows)) % parts != fold] for rows in chosen]
                out = [rows[fold::parts] for rows in chosen]
                lessons.append(ExampleSet(per_class, seed, fold, torch.cat(kept), torch.cat(out)))
    return lessons
