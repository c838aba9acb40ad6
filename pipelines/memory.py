"""The feed that reads a memory-mapped store and augments in one pass a mean picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fasttransfer import ops
from fasttransfer.pipelines.feed import Batch, Pictures, Stream, Views, centre_views


class MemoryFeed:
    """Batches straight from a raw store, see `fasttransfer.pipelines.feed.Feed`.

    Args:
        train, val: the pictures of the task.
        stream: order and views of training.
        means: task -> its mean picture, (S, S, 3) float32; a batch carries one set of pictures for each.
        crop: side of the crop; scale: factor on the pixel differences.
        device: where batches are made: the bytes cross, the floats do not.
    """

    def __init__(
        self,
        train: Pictures,
        val: Pictures,
        stream: Stream,
        means: Mapping[str, Tensor],
        *,
        crop: int,
        scale: float,
        device: torch.device,
    ) -> None:
        self._train, self._val, self._stream = train, val, stream
        self._means = {task: mean.to(device) for task, mean in means.items()}
        self._crop, self._scale, self._device = crop, scale, device

    def train(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0."""
        return self._batch(self._train, self._stream.views(step))

    def val(self) -> Iterator[Batch]:
        """Every validation picture once, in order, centre crops."""
        for ids in torch.arange(len(self._val)).split(self._stream.batch):
            yield self._batch(self._val, centre_views(ids, self._stream.margin))

    def _batch(self, source: Pictures, views: Views) -> Batch:
        ids = views.ids.numpy()
        pictures = torch.from_numpy(source.part.gather(source.rows[ids])).to(self._device)
        labels = torch.from_numpy(source.labels[ids]).to(self._device)
        top, left, mirror = (t.to(self._device) for t in (views.top, views.left, views.mirror))
        return Batch(
            {
                task: ops.augment(pictures, mean, top, left, mirror, crop=self._crop, scale=self._scale)
                for task, mean in self._means.items()
            },
            labels,
            views.ids,
        )
