"""The feed that reads a memory-mapped store and augments in one pass a mean picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fasttransfer import ops
from fasttransfer.pipelines.feed import Batch, Pictures, Stream, Views, centre_views
from fasttransfer.pipelines.store import Part


class MemoryFeed:
    """Batches straight from a raw store, see `fasttransfer.pipelines.feed.Feed`.

    Args:
        train, val: the pictures of the task.
        stream: order and views of training.
        means: task -> its mean picture, (S, S, 3) float32; a batch carries one set of pictures for each.
        crop: side of the crop; scale: factor on the pixel differences.
        device: where batches are made: the bytes cross, the floats do not.
        block, side, dtype: what becomes one pixel, how many there are, and their type, see `ops.augment`.
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
        block: int = 1,
        side: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._train, self._val, self._stream = train, val, stream
        self._means = {task: mean.to(device) for task, mean in means.items()}
        self._crop, self._scale, self._device = crop, scale, device
        self._block, self._side, self._dtype = block, side, dtype
        self._mapped = {part: _mapped(part) for part in (train.part, val.part)}

    def train(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0."""
        return self._batch(self._train, self._stream.views(step))

    def val(self) -> Iterator[Batch]:
        """Every validation picture once, in order, centre crops."""
        for ids in torch.arange(len(self._val)).split(self._stream.batch):
            yield self._batch(self._val, centre_views(ids, self._stream.margin))

    def _batch(self, source: Pictures, views: Views) -> Batch:
        ids = views.ids.numpy()
        rows, labels = source.rows[ids], torch.from_numpy(source.labels[ids]).to(self._device)
        if self._device.type == "cpu":
            shards, at = self._mapped[source.part], torch.from_numpy(rows)
        else:
            shards = [torch.from_numpy(source.part.gather(rows)).to(self._device)]
            at = torch.arange(len(rows), device=self._device)
        top, left, mirror = (t.to(self._device) for t in (views.top, views.left, views.mirror))
        return Batch(
            {
                task: ops.augment(
                    shards,
                    at,
                    mean,
                    top,
                    left,
                    mirror,
                    crop=self._crop,
                    scale=self._scale,
                    block=self._block,
                    side=self._side,
                    dtype=self._dtype,
                )
                for task, mean in self._means.items()
            },
            labels,
            views.ids,
        )


def _mapped(part: Part) -> list[Tensor]:
    """The shards of a part as tensors over the same read-only memory."""
    # Not from_numpy, which warns that somebody might write.
    return [from_dlpack(shard) for shard in part.shards]
