"""Make batches from rows of a store: the common part of all feeds, whose pixels are mapped, copied or decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from fasttransfer import ops
from fasttransfer.pipelines.streams import Batch, Stream, TaskImages, Views, centre_views

ShardPixels = tuple[Sequence[Tensor], Tensor]
"""Stored images on the device that makes the batch: shards, (R_i, S, S, 3) uint8, and the numbers of the batch's images
through all shards, (N,) int64 on the CPU."""


class Augmentation(TypedDict):
    """The arguments of `ops.augment` that say how images become the input of stage 1."""

    crop: int
    scale: float
    block: NotRequired[int]
    side: NotRequired[int | None]
    dtype: NotRequired[torch.dtype]


class StoreFeed(ABC):
    """Batches of a task's images in a store, see `fasttransfer.pipelines.streams.Feed`.

    Args:
        train, val: images of the task.
        stream: order and views of training.
        means: task -> its mean image, (S, S, 3) float32; a batch has one set of images for each.
        device: makes the batches, so that bytes cross to it, not floats.
        look: see `Augmentation`.
    """

    def __init__(
        self,
        train: TaskImages,
        val: TaskImages,
        stream: Stream,
        means: Mapping[str, Tensor],
        *,
        device: torch.device,
        **look: Unpack[Augmentation],
    ) -> None:
        self._train, self._val, self._stream, self._device, self._look = train, val, stream, device, look
        self._means = {task: mean.to(device) for task, mean in means.items()}

    def train(self, step: int) -> Batch:
        return self._batch(self._train, self._stream.views(step))

    def val(self) -> Iterator[Batch]:
        for ids in torch.arange(len(self._val)).split(self._stream.batch):
            yield self._batch(self._val, centre_views(ids, self._stream.margin))

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _pixels(self, images: TaskImages, ids: Tensor) -> AbstractContextManager[ShardPixels]:
        """Return a context with the pixels of the images `ids`, which may be overwritten when it ends."""

    def _batch(self, images: TaskImages, views: Views) -> Batch:
        labels = torch.from_numpy(images.labels[views.ids.numpy()])
        with self._pixels(images, views.ids) as (shards, rows):
            rows, top, left, mirror, labels = self._to_device(rows, views.top, views.left, views.mirror, labels)
            augmented = {
                task: ops.augment(shards, rows, mean, top, left, mirror.bool(), **self._look)
                for task, mean in self._means.items()
            }
        return Batch(augmented, labels, views.ids, views.number)

    def _to_device(self, *lists: Tensor) -> Sequence[Tensor]:
        """Return lists of N numbers on the device, sent in one copy that nothing waits for."""
        if self._device.type == "cpu":
            return lists
        together = torch.stack([each.to(torch.int64) for each in lists])
        return together.pin_memory().to(self._device, non_blocking=True).unbind()
