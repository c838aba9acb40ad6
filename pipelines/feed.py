"""What a feed is: batches of one task's pictures, in the order and with the views that the study's draws say.

Which picture comes when, and which crop and mirror of it is shown, are functions of (key, epoch, picture): any step
can be asked for at any time, so that a run may start anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fasttransfer import randomness
from fasttransfer.pipelines.store import Part, Store


class Batch(NamedTuple):
    """N pictures ready for stage 1.

    `pictures` maps the task whose mean was subtracted to (N, 3 * block^2, side, side) in channels-last memory, of the
    dtype asked for: the same pictures and views under each mean. `labels` and `ids` (rows of the task's list) are (N,)
    int64.
    """

    pictures: Mapping[str, Tensor]
    labels: Tensor
    ids: Tensor


class Feed(Protocol):
    """Batches of one task."""

    def train(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0."""

    def val(self) -> Iterator[Batch]:
        """Every validation picture once, in order, centre crops."""

    def close(self) -> None:
        """Gives back threads and memory; the feed is not asked again."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Some rows of a store's part, with the labels of a task: both (n,) int64."""

    part: Part
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def task_pictures(store: Store, part: Part, classes: tuple[str, ...], per_class: int | None = None) -> Pictures:
    """The pictures of `classes`, labelled by their position in that list, in the order of the store.

    `per_class` keeps the first so many of each class, as the paper's reduced-volume study did. That each class has
    pictures is for `Store.need_both_parts` to say.
    """
    label_of = np.full(len(store.classes), -1, dtype=np.int64)
    for label, name in enumerate(classes):
        label_of[store.classes.index(name)] = label
    labels = label_of[part.labels]
    if per_class is not None:
        for label in range(len(classes)):
            labels[np.flatnonzero(labels == label)[per_class:]] = -1
    rows = np.flatnonzero(labels >= 0)
    return Pictures(part, rows, labels[rows])


class Views(NamedTuple):
    """Which pictures, and what of them is shown: all (N,); `mirror` bool, the rest int64."""

    ids: Tensor
    top: Tensor
    left: Tensor
    mirror: Tensor


@dataclass(frozen=True)
class Stream:
    """The endless stream of a task's training pictures: epoch after epoch, each in its own order.

    Batches run on across the end of an epoch, so that every batch is full.

    Attributes:
        order_key, view_key: Philox keys of the order of an epoch and of the views in it.
        pictures: how many there are; batch: pictures a step.
        margin: side of the store minus side of the crop, in pixels.
    """

    order_key: int
    view_key: int
    pictures: int
    batch: int
    margin: int

    def views(self, step: int) -> Views:
        """The pictures of training step `step`, counted from 0, with their crops and mirrors."""
        start, stop = step * self.batch, (step + 1) * self.batch
        parts = []
        for epoch in range(start // self.pictures, (stop - 1) // self.pictures + 1):
            first = epoch * self.pictures
            ids = self._order(epoch)[max(start - first, 0) : stop - first]
            parts.append((ids, self._draws(epoch)[ids]))
        ids = torch.cat([ids for ids, _ in parts])
        draws = torch.cat([draws for _, draws in parts])
        offsets = (draws[:, :2] * (self.margin + 1)) >> 32
        return Views(ids, offsets[:, 0], offsets[:, 1], draws[:, 2] >= 1 << 31)

    def _order(self, epoch: int) -> Tensor:
        return _table("order", self.order_key, self.pictures, epoch)

    def _draws(self, epoch: int) -> Tensor:
        return _table("views", self.view_key, self.pictures, epoch)


def centre_views(ids: Tensor, margin: int) -> Views:
    """The centre crop of each picture, not mirrored."""
    middle = torch.full_like(ids, margin // 2)
    return Views(ids, middle, middle, torch.zeros_like(ids, dtype=torch.bool))


@lru_cache(maxsize=8)
def _table(kind: str, key: int, pictures: int, epoch: int) -> Tensor:
    """A table of an epoch, drawn once and not once a step. Two streams with two epochs each are kept."""
    if kind == "order":
        return randomness.permutation(key, pictures, at=epoch)
    return randomness.philox(key, pictures, at=epoch)
