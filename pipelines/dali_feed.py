"""The feed of jpeg stores: DALI only decodes; order, crops, mirrors and means are those of every feed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.store import JpegStorePart, Rows
from fasttransfer.pipelines.store_feed import Augmentation, ShardPixels, StoreFeed
from fasttransfer.pipelines.streams import Batch, Stream, TaskImages

_INPUT = "jpegs"


class DaliFeed(StoreFeed):
    """Batches from a jpeg store, decoded on the CPU or, "mixed", on the GPU.

    DALI gets the JPEGs of a batch in order and returns the pixels without a copy (DLPack); `ops.augment` does the rest.
    So only the decoder can differ from a `MemoryFeed` over the same pixels: on the CPU not at all, because both decode
    with libjpeg-turbo; on a GPU in the last bits, by other inverse transforms and interpolation. A raw store of the
    same source lacks the loss of JPEG at quality 95, nearly all of it from chroma at half resolution: on 400 images of
    ILSVRC12 at 256 x 256 a value differs by 2.1 on average, in 999 of 1000 by 27 at most, and by 194 at the worst.

    Step s + 1 usually follows step s, so DALI's threads decode it while s is trained on. Any other step gets the same
    batch as ever, only later. Memory: one decoded batch in use and one ahead, for training and, while it lasts, for
    validation.

    Args:
        threads: DALI's threads, which decode on the CPU and prepare what a GPU decodes.
        hw_share: share of the JPEGs, from 0 to 1, that a GPU's hardware decoder takes, where it has one; its cores
            decode the rest. None: DALI's default, 0.65, which its manual says to tune to the machine.

    The other arguments are those of `StoreFeed`.

    Raises:
        InputError: DALI is not installed; later, an image that cannot be read or decoded, by name.
    """

    def __init__(
        self,
        train: TaskImages,
        val: TaskImages,
        stream: Stream,
        means: Mapping[str, Tensor],
        *,
        device: torch.device,
        threads: int = 1,
        hw_share: float | None = None,
        **look: Unpack[Augmentation],
    ) -> None:
        super().__init__(train, val, stream, means, device=device, **look)
        require_dali()
        self._decoders = {
            images: _Decoder(images.part, stream.batch, device, threads, hw_share) for images in (train, val)
        }

    def train(self, step: int) -> Batch:
        batch = super().train(step)
        self._begin(self._train, self._stream.views(step + 1).ids)
        return batch

    def val(self) -> Iterator[Batch]:
        for batch in super().val():
            start = int(batch.ids[-1]) + 1
            if start < len(self._val):
                self._begin(self._val, torch.arange(start, min(start + self._stream.batch, len(self._val))))
            yield batch

    def close(self) -> None:
        self._decoders = {}

    def _begin(self, images: TaskImages, ids: Tensor) -> None:
        with suppress(InputError):  # the batch may never be needed; if it is, it is read again
            self._decoders[images].begin(images.rows[ids.numpy()])

    @contextmanager
    def _pixels(self, images: TaskImages, ids: Tensor) -> Iterator[ShardPixels]:
        with self._decoders[images].decoded(images.rows[ids.numpy()]) as pixels:
            yield [pixels], torch.arange(len(ids))


class _Decoder:
    """A decoder of a part's JPEGs, a batch at a time; `begin` lets DALI decode one ahead."""

    def __init__(self, part: Any, most: int, device: torch.device, threads: int, hw_share: float | None) -> None:
        assert isinstance(part, JpegStorePart), "a raw store has nothing to decode"
        self._part, self._most, self._device = part, most, device
        self._threads, self._hw_share = threads, hw_share
        self._pipeline: Any = None
        self._begun: Rows | None = None

    def begin(self, rows: Rows) -> None:
        """Start to decode `rows`, at most a batch; drop the batch that was begun before.

        Raises:
            InputError: one cannot be read.
        """
        self._drop()
        try:
            jpegs = [np.frombuffer(self._part.read(row), dtype=np.uint8) for row in rows.tolist()]
        except OSError:
            self._part.gather(rows)  # raises an error that names the image
            raise
        if self._pipeline is None:
            self._pipeline = self._build()
        self._pipeline.feed_input(_INPUT, jpegs)
        self._pipeline.schedule_run()
        self._begun = rows

    @contextmanager
    def decoded(self, rows: Rows) -> Iterator[Tensor]:
        """Yield the pixels of `rows`, (N, S, S, 3) uint8 in DALI's memory, for the current stream within the context.

        Raises:
            InputError: one cannot be read or decoded.
        """
        if self._begun is None or not np.array_equal(self._begun, rows):
            self.begin(rows)
        self._begun = None
        # Bound to our stream, the buffer is ready for our next kernels and only reused after them.
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        try:
            (decoded,) = self._pipeline.share_outputs(cuda_stream=stream)
        except RuntimeError:
            self._pipeline = None  # after an error DALI's pipeline cannot be used
            self._part.gather(rows)  # raises an error that names the image
            raise
        try:
            side = self._part.size
            for row, shape in zip(rows.tolist(), decoded.shape(), strict=True):
                if shape != (side, side, 3):
                    raise self._part.damage(row, f"{shape[1]} x {shape[0]} pixels, not {side} x {side}")
            yield from_dlpack(decoded.as_tensor())
        finally:
            self._pipeline.release_outputs()

    def _drop(self) -> None:
        """Wait for the batch that was begun and is not needed; ignore its error."""
        if self._begun is not None:
            self._begun = None
            try:
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()
            except RuntimeError:
                self._pipeline = None

    def _build(self) -> Any:
        from nvidia.dali import fn
        from nvidia.dali.pipeline import Pipeline
        from nvidia.dali.types import DALIDataType

        gpu = self._device.type == "cuda"
        pipeline = Pipeline(
            batch_size=self._most,
            num_threads=self._threads,
            device_id=(self._device.index or 0) if gpu else None,
            prefetch_queue_depth=1,  # `begin` decides what runs ahead
        )
        with pipeline:
            jpegs = fn.external_source(name=_INPUT, batch=True, dtype=DALIDataType.UINT8, ndim=1)
            if gpu:
                # Interpolate chroma as the CPU does, so that a study sees the same images on either.
                pixels = fn.decoders.image(
                    jpegs, device="mixed", jpeg_fancy_upsampling=True, hw_decoder_load=self._hw_share
                )
            else:
                pixels = fn.decoders.image(jpegs, device="cpu")
            pipeline.set_outputs(pixels)
        pipeline.build()
        return pipeline


def require_dali() -> None:
    """Check that DALI is installed.

    Raises:
        InputError: it is not; says what to do.
    """
    if not has_dali():
        raise InputError(
            "a jpeg store is decoded by NVIDIA DALI, which is not installed: pip install nvidia-dali-cuda130 (Linux), "
            "or use a raw store (--feed memory with the source)"
        )


def has_dali() -> bool:
    """Return whether DALI is installed, without importing it."""
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package of NVIDIA's is installed
        return False
