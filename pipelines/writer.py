"""Rows onto disk: one part of a store, a shard at a time, flushed and digested as each is complete."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fasttransfer.files import replace_file
from fasttransfer.pipelines.store import Digest, Labels, Pixels, shard_name

SHARD_BYTES = 256 << 20

Shard = np.memmap[Any, np.dtype[np.uint8]]


class PartWriter:
    """Appends pictures to the shards of `part` in `folder`.

    Args:
        most: pictures that may come at most; what is left out makes the last shard shorter.
        size: side of a picture in pixels.
        digest: told every shard and, at the end, the labels.
    """

    def __init__(self, folder: Path, part: str, *, most: int, size: int, digest: Digest) -> None:
        self._folder, self._part, self._most, self._size, self._digest = folder, part, most, size, digest
        self._rows = max(1, SHARD_BYTES // (size * size * 3))
        self._labels: list[int] = []
        self._complete: list[int] = []  # rows of each shard that is on disk
        self._shard: Shard | None = None
        self._filled = 0

    def add(self, pixels: Pixels, label: int) -> None:
        """One picture, (size, size, 3) uint8."""
        if self._shard is None:
            self._shard = _new_shard(self._path(), min(self._rows, self._most - len(self._labels)), self._size)
        self._shard[self._filled] = pixels
        self._labels.append(label)
        self._filled += 1
        if self._filled == len(self._shard):
            self._finish_shard(self._shard)

    def finish(self) -> tuple[Labels, list[int]]:
        """Puts the rest on disk; returns all labels and the number of rows in each shard."""
        if self._shard is not None:
            full = self._path().with_suffix(".full")
            os.rename(self._path(), full)
            shard = _new_shard(self._path(), self._filled, self._size)
            shard[:] = self._shard[: self._filled]
            self._finish_shard(shard)
            os.unlink(full)
        labels = np.asarray(self._labels, dtype=np.int64)
        with replace_file(self._folder / f"{self._part}-labels.npy", "wb") as file:
            np.save(file, labels, allow_pickle=False)
        self._digest.labels(labels)
        return labels, self._complete

    def _path(self) -> Path:
        return self._folder / shard_name(self._part, len(self._complete))

    def _finish_shard(self, shard: Shard) -> None:
        self._digest.pixels(shard)
        shard.flush()
        with open(self._path(), "r+b") as file:
            os.fsync(file.fileno())
        self._complete.append(len(shard))
        self._shard, self._filled = None, 0


def _new_shard(path: Path, rows: int, size: int) -> Shard:
    shard: Shard = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(rows, size, size, 3))
    if hasattr(os, "posix_fallocate"):
        # A fresh memory-mapped file is all holes; a disk found full while one is filled kills the process.
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return shard
