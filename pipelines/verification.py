"""Reading a whole store back: `fasttransfer data verify`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fasttransfer.core import machine
from fasttransfer.core.progress import Log
from fasttransfer.pipelines.decode import ImageError
from fasttransfer.pipelines.ordered_map import map_in_order
from fasttransfer.pipelines.progress_log import ProgressLog
from fasttransfer.pipelines.store import (
    MANIFEST,
    PARTS,
    JpegStorePart,
    Store,
    damaged_store_error,
    file_facts,
    manifest_checksum,
    shard_name,
)

_IMAGES = 64  # decoded at a time
_FEW = 5  # things named in a message


class _File(NamedTuple):
    name: str
    holds: str  # which images, for people
    images: int


class _Rows(NamedTuple):
    part: str
    start: int
    stop: int


def verify(store: Store, log: Log = lambda text: None) -> None:
    """Read a whole store back, compare it with its manifest, and decode every image of a jpeg store.

    All cores read, each a few MB at a time.

    Args:
        say: gets a line of progress every few seconds.

    Raises:
        InputError: a byte is not what was written; names the files and the images in them.
    """
    wrong = []
    if manifest_checksum(store.manifest) != store.manifest.get("checksum"):
        wrong.append(MANIFEST)
    total = len(store.train) + len(store.val)
    eta = ProgressLog("verify: reading", total, log)
    for file, same in map_in_order(lambda file: _same(store, file), list(_files(store)), machine.cores()):
        if not same:
            wrong.append(f"{file.name}{file.holds}")
        eta.step(file.images)
    if store.kind == "jpeg":
        eta = ProgressLog("verify: decoding", total, log)
        for rows, bad in map_in_order(lambda rows: _undecodable(store, rows), _tasks(store), machine.cores()):
            wrong += [f"{rows.part} image {row:,}, which cannot be decoded" for row in bad]
            eta.step(rows.stop - rows.start)
    if wrong:
        more = f"; and {len(wrong) - _FEW:,} more" if len(wrong) > _FEW else ""
        raise damaged_store_error(store.folder, f"not what was written: {'; '.join(wrong[:_FEW])}{more}")


def _files(store: Store) -> Iterator[_File]:
    for part in PARTS:
        yield _File(f"{part}-labels.npy", "", 0)
        if store.kind == "jpeg":
            yield _File(f"{part}-index.npy", "", 0)
        start = 0
        for number, rows in enumerate(store.manifest["parts"][part]["shards"]):
            holds = f" with {part} images {start:,} to {start + rows - 1:,}"
            yield _File(shard_name(part, number, store.kind), holds, rows)
            start += rows


def _same(store: Store, file: _File) -> bool:
    try:
        return bool(file_facts(store.folder / file.name) == store.manifest["files"].get(file.name))
    except OSError:
        return False


def _tasks(store: Store) -> Iterator[_Rows]:
    for part in PARTS:
        count = len(getattr(store, part))
        for start in range(0, count, _IMAGES):
            yield _Rows(part, start, min(start + _IMAGES, count))


def _undecodable(store: Store, rows: _Rows) -> list[int]:
    part: JpegStorePart = getattr(store, rows.part)
    try:
        part.gather(np.arange(rows.start, rows.stop))
    except (ImageError, OSError):
        return [row for row in range(rows.start, rows.stop) if not _decodes(part, row)]
    return []


def _decodes(part: JpegStorePart, row: int) -> bool:
    try:
        part.gather(np.array([row]))
    except (ImageError, OSError):
        return False
    return True
