"""Read a whole store back: `fasttransfer data verify`, and before a study trains on it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import Log, ProgressLog
from fasttransfer.pipelines.ordered_map import map_in_order
from fasttransfer.pipelines.store import (
    MANIFEST,
    PARTS,
    Store,
    damaged_store_error,
    file_facts,
    manifest_checksum,
    shard_name,
)

_IMAGES = 64  # decoded per task
_NAMED = 5  # damaged things named in a message


def verify(store: Store, log: Log = lambda text: None, *, decode: bool = True) -> None:
    """Read a whole store back, compare it with its manifest, and decode every image of a jpeg store.

    All cores read, each a few MB at a time.

    Args:
        decode: whether to decode images as well; that what was written is there does not depend on it.
        log: called with a line of progress every few seconds.

    Raises:
        InputError: a byte is not what was written; the message names the files and the images in them.
    """

    def is_intact(file: tuple[str, str, int]) -> bool:
        name = file[0]
        try:
            return bool(file_facts(store.folder / name) == store.manifest["files"].get(name))
        except OSError:
            return False

    def find_undecodable(images: tuple[str, range]) -> list[int]:
        part, rows = images
        return [row for row in rows if not _is_decodable(store, part, row)]

    wrong = []
    if manifest_checksum(store.manifest) != store.manifest.get("checksum"):
        wrong.append(MANIFEST)
    total = len(store.train) + len(store.val)
    progress = ProgressLog("verify: reading", total, log)
    for (name, holds, images), intact in map_in_order(is_intact, _files(store), machine.cores()):
        if not intact:
            wrong.append(f"{name}{holds}")
        progress.step(images)
    if decode and store.kind == "jpeg":
        progress = ProgressLog("verify: decoding", total, log)
        for (part, rows), bad in map_in_order(find_undecodable, _batches(store), machine.cores()):
            wrong += [f"{part} image {row:,}, which cannot be decoded" for row in bad]
            progress.step(len(rows))
    if wrong:
        more = f"; and {len(wrong) - _NAMED:,} more" if len(wrong) > _NAMED else ""
        raise damaged_store_error(store.folder, f"not what was written: {'; '.join(wrong[:_NAMED])}{more}")


def _files(store: Store) -> Iterator[tuple[str, str, int]]:
    """Yield the name of each file, the images in it in words, and their number."""
    for part in PARTS:
        yield f"{part}-labels.npy", "", 0
        if store.kind == "jpeg":
            yield f"{part}-index.npy", "", 0
        start = 0
        for number, rows in enumerate(store.manifest["parts"][part]["shards"]):
            holds = f" with {part} images {start:,} to {start + rows - 1:,}"
            yield shard_name(part, number, store.kind), holds, rows
            start += rows


def _batches(store: Store) -> Iterator[tuple[str, range]]:
    for part, images in store.parts.items():
        for start in range(0, len(images), _IMAGES):
            yield part, range(start, min(start + _IMAGES, len(images)))


def _is_decodable(store: Store, part: str, row: int) -> bool:
    try:
        store.parts[part].gather(np.array([row]))
    except InputError:
        return False
    return True
