"""The decoders of `prepare`: many files per call, on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.decode import FITS, ImageError, Pixels, decode_or_error


class Decoder(Protocol):
    """A decoder of image files, some per call."""

    images: int  # the number of files per call that suits it
    threads: int  # the number of threads that should call it at the same time

    def __call__(self, blobs: Sequence[bytes]) -> list[Pixels | ImageError]:
        """Return what `decode` returns or raises for each file, in order."""


class _CpuDecoder:
    """A decoder that decodes one image after another in the calling thread."""

    images = 16

    def __init__(self, size: int, fit: str) -> None:
        self.threads = machine.cores()
        self._size, self._fit = size, fit

    def __call__(self, blobs: Sequence[bytes]) -> list[Pixels | ImageError]:
        return [decode_or_error(data, self._size, self._fit) for data in blobs]


def decoder_for(device: str, size: int, fit: str) -> Decoder:
    """Return the fastest decoder on a device.

    Args:
        device: "cpu" | "cuda".
        size: side of the results in pixels.
        fit: "stretch" | "crop", see `decode`.

    Raises:
        InputError: an unknown fit; an unknown device, or one that is missing.
    """
    if fit not in FITS:
        raise InputError(f"fit {fit!r}: say {' or '.join(FITS)}")
    if device == "cpu":
        return _CpuDecoder(size, fit)
    if device == "cuda":
        from fasttransfer.pipelines.gpu_decoder import GpuDecoder  # here, for DALI takes half a second to load

        return GpuDecoder(size, fit)
    raise InputError(f"device {device!r}: say cpu or cuda")
