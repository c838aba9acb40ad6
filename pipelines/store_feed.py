"""Rows of a store -> batches: what every feed does, whether its pixels are mapped, copied or decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

from fasttransfer import ops
from fasttransfer.pipelines.streams import Batch, Stream, TaskImages, Views, centre_views


class Pixels(NamedTuple):
    """Images as they are stored, where the batch is made.

    `shards` are (R_i, S, S, 3) uint8; `rows`, (N,) int64 on the CPU, says which of them the batch has, numbered through
    all shards.
    """

    shards: Sequence[Tensor]
    rows: Tensor


class Augmentation(TypedDict):
    """What becomes of an image on its way to stage 1, see `StoreFeed`."""

    crop: int
    scale: float
    block: NotRequired[int]
    side: NotRequired[int | None]
    dtype: NotRequired[torch.dtype]


class StoreFeed(ABC):
    """Batches of a task's images in a store, see `fasttransfer.pipelines.streams.Feed`.

    Args:
        train, val: the images of the task.
        stream: order and views of training.
        means: task -> its mean image, (S, S, 3) float32; a batch carries one set of images for each.
        crop: side of the crop; scale: factor on the pixel differences.
        device: where batches are made: the bytes cross, the floats do not.
        block, side, dtype: what becomes one pixel, how many there are, and their type, see `ops.augment`.
    """

    def __init__(
        self,
        train: TaskImages,
        val: TaskImages,
        stream: Stream,
        means: Mapping[str, Tensor],
        *,
        crop: int,
        scale: float,
        device: torch.device,
        block: int = 1,
        side: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._train, self._val, self._stream, self._device = train, val, stream, device
        self._means = {task: mean.to(device) for task, mean in means.items()}
        self._crop, self._scale = crop, scale
        self._block, self._side, self._dtype = block, side, dtype

    def train(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0."""
        return self._batch(self._train, self._stream.views(step))

    def val(self) -> Iterator[Batch]:
        """Every validation image once, in order, centre crops."""
        for ids in torch.arange(len(self._val)).split(self._stream.batch):
            yield self._batch(self._val, centre_views(ids, self._stream.margin))

    @abstractmethod
    def close(self) -> None:
        """Gives back threads and memory; the feed is not asked again."""

    @abstractmethod
    def _pixels(self, images: TaskImages, ids: Tensor) -> AbstractContextManager[Pixels]:
        """The pixels of the images `ids`; they may be overwritten when the context ends."""

    def _batch(self, images: TaskImages, views: Views) -> Batch:
        labels = torch.from_numpy(images.labels[views.ids.numpy()])
        with self._pixels(images, views.ids) as pixels:
            rows, top, left, mirror, labels = self._moved(pixels.rows, views.top, views.left, views.mirror, labels)
            shown = {
                task: ops.augment(
                    pixels.shards,
                    rows,
                    mean,
                    top,
                    left,
                    mirror.bool(),
                    crop=self._crop,
                    scale=self._scale,
                    block=self._block,
                    side=self._side,
                    dtype=self._dtype,
                )
                for task, mean in self._means.items()
            }
        return Batch(shown, labels, views.ids, views.number)

    def _moved(self, *lists: Tensor) -> Sequence[Tensor]:
        """Lists of N numbers on the device, in one copy that nobody waits for."""
        if self._device.type == "cpu":
            return lists
        together = torch.stack([each.to(torch.int64) for each in lists])
        return together.pin_memory().to(self._device, non_blocking=True).unbind()
