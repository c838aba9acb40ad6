"""Decoding on a GPU with DALI, for `prepare`.

Only JPEGs that every decoder reads alike (see `jpeg_header`) go to the GPU. All others go to `decode`, and so do
progressive ones, for which GPUs have no engine. DALI fails a whole batch for one image that it cannot decode: then
`decode` gets the batch, and says which image it was, and why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.dali_feed import has_dali
from fasttransfer.pipelines.decode import MOST_PIXELS, ImageError, Pixels, decode_or_error, visible_box
from fasttransfer.pipelines.jpeg_header import one_whole_scan, ordinary_jpeg

_HARDWARE_SHARE = 0.65  # of the images go to the JPEG engines of GPUs that have them: DALI's default

Shape = tuple[int, int]


class GpuDecoder:
    """A decoder of some files per call that refuses what `decode` refuses, for the same reasons, but for one: DALI does
    not tell damage inside the compressed pixels.

    Its pixels are those of `decode` up to rounding, except for the outermost pixel on each side: where a filter reaches
    over the edge, DALI repeats the last pixel and the CPU operator leaves out what is not there.
    """

    images = 64  # files per call that suit it
    threads = 2  # should call it at the same time: while one waits for its images, the GPU decodes those of the other

    def __init__(self, size: int, fit: str, *, gpu: int | None = 0) -> None:
        """
        Args:
            gpu: its number; None for DALI on the CPU, which tests use.

        Raises:
            InputError: no GPU, or no DALI.
        """
        if gpu is not None and gpu >= torch.cuda.device_count():
            raise InputError("device cuda: PyTorch finds no GPU here: decode on the CPU with --device cpu")
        if not has_dali():
            raise InputError(
                "device cuda: decoding on the GPU needs DALI, which is not installed: install nvidia-dali-cuda130 (or "
                "the one of your CUDA version), or decode on the CPU with --device cpu"
            )
        self._size, self._fit, self._gpu = size, fit, gpu
        self._of_thread = threading.local()

    def __call__(
        self, blobs: Sequence[bytes], warn: Callable[[int, str], None] = lambda place, text: None
    ) -> list[Pixels | ImageError]:
        """Return what `decode` returns or raises for each file, in order.

        Args:
            warn: called with the place of a file that may be damaged, and a sentence.
        """
        results: list[Pixels | ImageError | None] = [None] * len(blobs)
        shapes = {i: shape for i, data in enumerate(blobs) if (shape := _shape(data)) is not None}
        for some in _runs(shapes, self.images):
            pixels = self._run([blobs[i] for i in some], [shapes[i] for i in some])
            for i, each in zip(some, pixels if pixels is not None else (), strict=False):
                results[i] = each
        return [
            decode_or_error(data, self._size, self._fit, partial(warn, i)) if each is None else each
            for i, (data, each) in enumerate(zip(blobs, results, strict=True))
        ]

    def _run(self, blobs: Sequence[bytes], shapes: Sequence[Shape]) -> Pixels | None:
        """Return (n, size, size, 3) uint8, or None where DALI refuses one of the images."""
        boxes = [visible_box(self._fit, *shape) for shape in shapes]
        pipe = getattr(self._of_thread, "pipe", None) or self._build()
        self._of_thread.pipe = None  # a pipeline that has raised cannot be used again
        try:
            pipe.feed_input("jpegs", [np.frombuffer(data, np.uint8) for data in blobs])
            pipe.feed_input("start", [np.array((top, left), np.float32) for top, left, _, _ in boxes])
            pipe.feed_input("end", [np.array((y + height, x + width), np.float32) for y, x, height, width in boxes])
            (out,) = pipe.run()
            pixels = np.array((out if self._gpu is None else out.as_cpu()).as_array())
        except RuntimeError:
            return None
        self._of_thread.pipe = pipe
        return pixels

    def _build(self) -> Any:
        from nvidia.dali import fn
        from nvidia.dali.pipeline import Pipeline
        from nvidia.dali.types import DALIDataType

        threads = max(1, machine.cores() // self.threads)
        pipe = Pipeline(self.images, threads, self._gpu, prefetch_queue_depth=1)
        with pipe:
            jpegs = fn.external_source(name="jpegs", dtype=DALIDataType.UINT8, ndim=1)
            start, end = (fn.external_source(name=name, dtype=DALIDataType.FLOAT, ndim=1) for name in ("start", "end"))
            images = fn.decoders.image(
                jpegs,
                device="cpu" if self._gpu is None else "mixed",
                hw_decoder_load=_HARDWARE_SHARE,
                jpeg_fancy_upsampling=True,  # as the CPU decoders
                adjust_orientation=False,
            )
            pipe.set_outputs(fn.resize(images, size=(self._size, self._size), roi_start=start, roi_end=end))
        pipe.build()
        return pipe


def _shape(data: bytes) -> Shape | None:
    """Return the height and width of an image that DALI may decode; None for any other."""
    header = ordinary_jpeg(data)
    if header is None or header.orientation != 1 or header.height * header.width > MOST_PIXELS:
        return None
    if not one_whole_scan(data, header):
        return None
    return header.height, header.width


def _runs(shapes: Mapping[int, Shape], most: int) -> Iterator[list[int]]:
    """Yield the images that go through DALI together: at most `most`, and not too many pixels."""
    some: list[int] = []
    pixels = 0
    for i, (height, width) in shapes.items():
        if some and (len(some) == most or pixels + height * width > MOST_PIXELS):
            yield some
            some, pixels = [], 0
        some.append(i)
        pixels += height * width
    if some:
        yield some
