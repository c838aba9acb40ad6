"""Entries of the feature cache that are small enough for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fasttransfer.features import cache
from fasttransfer.features.cache_entry import CacheEntry, EntryInfo
from fasttransfer.features.cache_key import CacheKey
from fasttransfer.networks.caffenet import CaffeNetArchitecture
from fasttransfer.pipelines.store import Pixels, Rows
from fasttransfer.pipelines.streams import TaskImages

TINY = CaffeNetArchitecture("tiny", 32, 29, 5, 2, (8, 12, 8, 8, 8), (16, 16))
INFO = EntryInfo("baseA.s0", "/runs/some", "builtin", "train", "B", ("cat", "dog"))
KEY = CacheKey(
    prefix="1" * 32,
    mean="2" * 32,
    scale=1 / 64,
    network=TINY.facts(),
    cut=5,
    shape=TINY.cut_shape(5),
    images="3" * 32,
    views=((1, 1, False), (1, 1, True)),
    precision="fp32",
    device="cpu",
    threads=1,
    batch=8,
    versions={"torch": "2", "shards": "1"},
)


def key(**changes: object) -> CacheKey:
    """Return `KEY` with `changes`; another cut has its own shape."""
    shape = {"shape": TINY.cut_shape(changes["cut"])} if "cut" in changes else {}  # type: ignore[arg-type]
    return replace(KEY, **(shape | changes))  # type: ignore[arg-type]


def draw_features(n: int, shape: Sequence[int], share: float = 0.3, seed: int = 0) -> Tensor:
    """Return (n, *shape) bfloat16, of which `share` is not zero, in channels-last memory."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((n, *shape), generator=generator).abs() + 0.01
    x = x.masked_fill(torch.rand(x.shape, generator=generator) >= share, 0.0).bfloat16()
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 3 else x


class NoPart:
    """A stand-in for a part of a store; nothing is read from it."""

    labels = np.zeros(0, np.int64)
    size = TINY.store

    def __len__(self) -> int:
        return 0

    def gather(self, rows: Rows) -> Pixels:
        raise AssertionError("a test of entries reads no pixels")


def images(n: int) -> TaskImages:
    """Return every third row, of two classes."""
    return TaskImages(NoPart(), np.arange(n) * 3, np.arange(n) % 2)


def make(root: Path, key: CacheKey = KEY, n: int = 10, *, share: float = 0.3, info: EntryInfo = INFO) -> Tensor:
    """Make an entry and return its records."""
    x = draw_features(n * len(key.views), key.shape, share, seed=key.cut)
    with cache.make_entries(root, [(key, info)], images(n)) as writers:
        for writer in writers:
            for part in x.split(7):
                writer.append(part)
    return x


def find(root: Path, key: CacheKey = KEY) -> CacheEntry:
    """Return the entry, which is there."""
    entry = cache.find_entry(root, key)
    assert entry is not None
    return entry


def is_same(a: Tensor, b: Tensor) -> bool:
    """Return whether all bits are equal."""
    return a.shape == b.shape and torch.equal(a.view(torch.int16), b.view(torch.int16))
