"""Feeds: batches of one task's images, in the order and with the views that the study draws.

The order of the images, and the crop and mirror of each, are functions of (key, epoch, image): any step can be
requested at any time, so that a run may start anywhere.
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
    feed's dtype: the same images and views under each mean. `labels`, `ids` (rows of the task's list) and `views`
    (numbers in the stream's list of views; 0 where it has none) are (N,) int64, the latter two on the CPU. `cuts` has
    known features of the images: source and n, e.g. "A5", -> cut n, (N, ...) bfloat16.
    """

    images: Mapping[str, Tensor]
    labels: Tensor
    ids: Tensor
    views: Tensor
    cuts: Mapping[str, Tensor] = MappingProxyType({})


class Feed(Protocol):
    """A source of batches of one task."""

    def train(self, step: int) -> Batch:
        """Return the batch of training step `step`, counted from 0."""

    def val(self) -> Iterator[Batch]:
        """Yield batches of every validation image once, in order, as centre crops."""

    def close(self) -> None:
        """Release threads and memory; the feed cannot be used again."""


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
    """Return the images of `classes`, labelled by their position in that list, in the order of the store.

    `per_class` keeps the first so many of each class, as the paper's reduced-volume study did.
    `Store.require_both_parts` checks that each class has images.
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
    """The part of every batch that this process of several takes; all of it where there is one.

    Parts are as equal as whole images allow, in the order of the processes.
    """

    rank: int = 0
    ranks: int = 1

    def of(self, count: int) -> tuple[int, int]:
        """Return the start and the end of this process's part of `count` images."""
        return count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks


WHOLE = Share()


class Views(NamedTuple):
    """Images and the views of them: all (N,); `mirror` bool, the rest int64.

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
        images: number of images; batch: images per step.
        margin: side of the store minus side of the crop, in pixels.
        choices: views to draw from, (top, left, mirror) each; without them any crop and its mirror.
        share: the part of every batch that this process makes; the order is that of the whole.
    """

    order_key: int
    view_key: int
    images: int
    batch: int
    margin: int
    choices: Sequence[tuple[int, int, bool]] = ()
    share: Share = WHOLE

    def views(self, step: int) -> Views:
        """Return the images of training step `step`, counted from 0, with their crops and mirrors."""
        start, stop = (step * self.batch + end for end in self.share.of(self.batch))
        parts = []
        for epoch in range(start // self.images, (stop - 1) // self.images + 1):
            first = epoch * self.images
            ids = _order(self.order_key, self.images, epoch)[max(start - first, 0) : stop - first]
            parts.append((ids, _draws(self.view_key, self.images, epoch)[ids]))
        ids = torch.cat([ids for ids, _ in parts])
        draws = torch.cat([draws for _, draws in parts])
        if self.choices:
            return self._listed(ids, (draws[:, 0] * len(self.choices)) >> 32)
        offsets = (draws[:, :2] * (self.margin + 1)) >> 32
        return Views(ids, offsets[:, 0], offsets[:, 1], draws[:, 2] >= 1 << 31, torch.zeros_like(ids))

    def _listed(self, ids: Tensor, number: Tensor) -> Views:
        top, left, mirror = torch.tensor(self.choices)[number].unbind(1)
        return Views(ids, top, left, mirror.bool(), number)


class Sweep(Stream):
    """A stream of every image in every view of the list, once: record number = image * views + view.

    The last record is repeated so that every batch is full.
    """

    @property
    def records(self) -> int:
        """The number of records."""
        return self.images * len(self.choices)

    @property
    def steps(self) -> int:
        """The number of batches that hold every record."""
        return -(-self.records // self.batch)

    def views(self, step: int) -> Views:
        """Return the records of batch `step`, counted from 0."""
        records = torch.arange(step * self.batch, (step + 1) * self.batch).clamp(max=self.records - 1)
        return self._listed(records // len(self.choices), records % len(self.choices))


def centre_views(ids: Tensor, margin: int) -> Views:
    """Return the centre crop of each image, not mirrored: number 0 of every list of views."""
    middle = torch.full_like(ids, margin // 2)
    return Views(ids, middle, middle, torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids))


# Drawn once per epoch, not per step; each cache holds two epochs of two streams.
@lru_cache(maxsize=4)
def _order(key: int, images: int, epoch: int) -> Tensor:
    return randomness.permutation(key, images, at=epoch)


@lru_cache(maxsize=4)
def _draws(key: int, images: int, epoch: int) -> Tensor:
    return randomness.philox(key, images, at=epoch)
