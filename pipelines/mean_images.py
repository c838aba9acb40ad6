"""Mean images, which are subtracted from the pixels. A task's is computed once and kept in the cache."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import make_folder, remove_temporary_files, replace_file
from fasttransfer.pipelines.store import Rows, Store, StorePart
from fasttransfer.pipelines.streams import TaskImages, select_task_images

Mean = NDArray[np.float32]

_STALE_SECONDS = 3600.0  # age from which a half-written file has no writer
_CHUNK = 64 << 20  # bytes of pixels held at a time


def compute_mean_image(images: TaskImages) -> Mean:
    """Return the mean of every pixel over `images`: (S, S, 3) float32, S the side of the store."""
    threads = machine.cores()
    with ThreadPoolExecutor(threads, thread_name_prefix="mean") as pool:
        shares = np.array_split(images.rows, threads)
        sums = list(pool.map(partial(_sum, images.part, _CHUNK // threads), shares))
    mean: Mean = (np.sum(sums, axis=0) / len(images)).astype(np.float32)
    return mean


def _sum(part: StorePart, chunk: int, rows: Rows) -> NDArray[np.int64]:
    """Return the sum over `rows`, (S, S, 3) int64; hold at most about `chunk` bytes of pixels at a time."""
    total = np.zeros((part.size, part.size, 3), dtype=np.int64)
    step = min(max(1, chunk // total.size), 1 << 24)  # the sum of so many bytes fits 32 bits
    for some in np.split(rows, range(step, len(rows), step)):
        total += part.gather(some).sum(axis=0, dtype=np.uint32)
    return total


def load_mean_image(store: Store, classes: Sequence[str], per_class: int | None, cache: Path) -> Mean:
    """Return the mean of a task's training images, from `cache`/means where it was computed before.

    A file is in NumPy's format, followed by its XXH3-128, which NumPy does not read. A damaged one is computed again;
    a cache that cannot be written only costs the next study time.

    Args:
        classes, per_class: see `fasttransfer.pipelines.streams.select_task_images`.
    """
    path = _path(store, classes, per_class, cache)
    mean = _read(path, store.size)
    if mean is None:
        mean = compute_mean_image(select_task_images(store, store.train, tuple(classes), per_class))
        with suppress(InputError):
            _write(path, mean)
    return mean


def has_mean_image(store: Store, classes: Sequence[str], per_class: int | None, cache: Path) -> bool:
    """Return whether the cache has what `load_mean_image` would return."""
    return _path(store, classes, per_class, cache).exists()


def _path(store: Store, classes: Sequence[str], per_class: int | None, cache: Path) -> Path:
    key = json.dumps([store.digest, list(classes), per_class])
    return cache / "means" / f"{xxhash.xxh3_128_hexdigest(key.encode())}.npy"


def _write(path: Path, mean: Mean) -> None:
    content = io.BytesIO()
    np.save(content, mean, allow_pickle=False)
    remove_temporary_files(make_folder(path.parent), _STALE_SECONDS)
    with replace_file(path) as file:
        file.write(content.getvalue() + xxhash.xxh3_128_digest(content.getvalue()))


def _read(path: Path, side: int) -> Mean | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    content, checksum = content[:-16], content[-16:]
    if xxhash.xxh3_128_digest(content) != checksum:
        return None
    mean: Mean = np.load(io.BytesIO(content), allow_pickle=False)
    return mean if mean.dtype == np.float32 and mean.shape == (side, side, 3) else None
