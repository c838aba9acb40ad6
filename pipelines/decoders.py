"""The decoders of `prepare`: many files at a time, on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.decode import FITS, ImageError, Pixels, decode_or_error


class Decoder(Protocol):
    """Images' bytes to their pixels, some at a time."""

    images: int  # how many it likes at a time
    threads: int  # how many threads should call it at the same time

    def __call__(self, blobs: Sequence[bytes]) -> list[Pixels | ImageError]:
        """What `decode` returns or raises for each, in order."""


class _CpuDecoder:
    """One image after another, in the thread that calls."""

    images = 16

    def __init__(self, size: int, fit: str) -> None:
        self.threads = machine.cores()
        self._size, self._fit = size, fit

    def __call__(self, blobs: Sequence[bytes]) -> list[Pixels | ImageError]:
        return [decode_or_error(data, self._size, self._fit) for data in blobs]


def decoder_for(device: str, size: int, fit: str) -> Decoder:
    """The fastest decoder on a device.

    Args:
        device: "cpu" | "cuda".
        size: side of the results in pixels.
        fit: "stretch" | "crop", see `decode`.

    Raises:
        InputError: another fit; another device, or one that is not there.
    """
    if fit not in FITS:
        raise InputError(f"fit {fit!r}: say {' or '.join(FITS)}")
    if device == "cpu":
        return _CpuDecoder(size, fit)
    if device == "cuda":
        from fasttransfer.pipelines.gpu_decoder import GpuDecoder  # here, for DALI takes half a second to load

        return GpuDecoder(size, fit)
    raise InputError(f"device {device!r}: say cpu or cuda")
