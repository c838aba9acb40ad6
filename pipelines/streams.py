"""What a feed is: batches of one task's images, in the order and with the views that the study's draws say.

Which image comes when, and which crop and mirror of it is shown, are functions of (key, epoch, image): any step
can be asked for at any time, so that a run may start anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fasttransfer.core import randomness
from fasttransfer.pipelines.store import Store, StorePart


class Batch(NamedTuple):
    """N images ready for stage 1.

    `images` maps the task whose mean was subtracted to (N, 3 * block^2, side, side) in channels-last memory, of the
    dtype asked for: the same images and views under each mean. `labels`, `ids` (rows of the task's list) and `views`
    (numbers in the stream's list of views; 0 where it has none) are (N,) int64, the latter two on the CPU. `cuts` has
    what is known of the images further up: source and n, e.g. "A5", -> cut n, (N, ...) bfloat16.
    """

    images: Mapping[str, Tensor]
    labels: Tensor
    ids: Tensor
    views: Tensor
    cuts: Mapping[str, Tensor] = MappingProxyType({})


class Feed(Protocol):
    """Batches of one task."""

    def train(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0."""

    def val(self) -> Iterator[Batch]:
        """Every validation image once, in order, centre crops."""

    def close(self) -> None:
        """Gives back threads and memory; the feed is not asked again."""


@dataclass(frozen=True, eq=False)
class TaskImages:
    """Some rows of a store's part, with the labels of a task: both (n,) int64."""

    part: StorePart
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def select_task_images(
    store: Store, part: StorePart, classes: tuple[str, ...], per_class: int | None = None
) -> TaskImages:
    """The images of `classes`, labelled by their position in that list, in the order of the store.

    `per_class` keeps the first so many of each class, as the paper's reduced-volume study did. That each class has
    images is for `Store.need_both_parts` to say.
    """
    label_of = np.full(len(store.classes), -1, dtype=np.int64)
    for label, name in enumerate(classes):
        label_of[store.classes.index(name)] = label
    labels = label_of[part.labels]
    if per_class is not None:
        for label in range(len(classes)):
            labels[np.flatnonzero(labels == label)[per_class:]] = -1
    rows = np.flatnonzero(labels >= 0)
    return TaskImages(part, rows, labels[rows])


@dataclass(frozen=True)
class Share:
    """Which of several processes this is, and so which part of every batch it takes: all of it where there is one.

    Parts are as equal as whole images allow, and in the order of the processes.
    """

    rank: int = 0
    ranks: int = 1

    def of(self, count: int) -> tuple[int, int]:
        """Where this process's part of `count` images begins and ends."""
        return count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks


WHOLE = Share()


class Views(NamedTuple):
    """Which images, and what of them is shown: all (N,); `mirror` bool, the rest int64.

    `number` is the view's place in the stream's list, 0 where it has none.
    """

    ids: Tensor
    top: Tensor
    left: Tensor
    mirror: Tensor
    number: Tensor


@dataclass(frozen=True)
class Stream:
    """The endless stream of a task's training images: epoch after epoch, each in its own order.

    Batches run on across the end of an epoch, so that every batch is full.

    Attributes:
        order_key, view_key: Philox keys of the order of an epoch and of the views in it.
        images: how many there are; batch: images per step.
        margin: side of the store minus side of the crop, in pixels.
        choices: the views to draw from, (top, left, mirror) each; without them any crop and its mirror.
        share: the part of every batch that is made; the order is that of the whole.
    """

    order_key: int
    view_key: int
    images: int
    batch: int
    margin: int
    choices: Sequence[tuple[int, int, bool]] = ()
    share: Share = WHOLE

    def views(self, step: int) -> Views:
        """The images of training step `step`, counted from 0, with their crops and mirrors."""
        start, stop = (step * self.batch + end for end in self.share.of(self.batch))
        parts = []
        for epoch in range(start // self.images, (stop - 1) // self.images + 1):
            first = epoch * self.images
            ids = self._order(epoch)[max(start - first, 0) : stop - first]
            parts.append((ids, self._draws(epoch)[ids]))
        ids = torch.cat([ids for ids, _ in parts])
        draws = torch.cat([draws for _, draws in parts])
        if self.choices:
            number = (draws[:, 0] * len(self.choices)) >> 32
            top, left, mirror = torch.tensor(self.choices)[number].unbind(1)
            return Views(ids, top, left, mirror.bool(), number)
        offsets = (draws[:, :2] * (self.margin + 1)) >> 32
        return Views(ids, offsets[:, 0], offsets[:, 1], draws[:, 2] >= 1 << 31, torch.zeros_like(ids))

    def _order(self, epoch: int) -> Tensor:
        return _table("order", self.order_key, self.images, epoch)

    def _draws(self, epoch: int) -> Tensor:
        return _table("views", self.view_key, self.images, epoch)


class Sweep(Stream):
    """Every image in every view of the list, once: record number = image * views + view.

    Behind the last record it comes again and again, so that every batch is full.
    """

    @property
    def records(self) -> int:
        return self.images * len(self.choices)

    @property
    def steps(self) -> int:
        """Batches until every record has come."""
        return -(-self.records // self.batch)

    def views(self, step: int) -> Views:
        """The records of batch `step`, counted from 0."""
        records = torch.arange(step * self.batch, (step + 1) * self.batch).clamp(max=self.records - 1)
        ids, number = records // len(self.choices), records % len(self.choices)
        top, left, mirror = torch.tensor(self.choices)[number].unbind(1)
        return Views(ids, top, left, mirror.bool(), number)


def centre_views(ids: Tensor, margin: int) -> Views:
    """The centre crop of each image, not mirrored: number 0 of every list of views."""
    middle = torch.full_like(ids, margin // 2)
    return Views(ids, middle, middle, torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids))


@lru_cache(maxsize=8)
def _table(kind: str, key: int, images: int, epoch: int) -> Tensor:
    """A table of an epoch, drawn once and not once a step. Two streams with two epochs each are kept."""
    if kind == "order":
        return randomness.permutation(key, images, at=epoch)
    return randomness.philox(key, images, at=epoch)
