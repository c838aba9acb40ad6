"""A shard of a store: a fixed range of a part's images, written once and described by a record beside it.

While a store is being made, `<shard>.done` says that the shard is complete and what it holds. The record is written
after the shard is on disk, so a shard without one is the work of a killed process. A finished store has no records.

A shard is never memory-mapped while it is written: a page fault of a mapped file costs more than the copy, and a disk
that fills up kills the process with a signal.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from fasttransfer.core.files import replace_file
from fasttransfer.pipelines.decode import Pixels
from fasttransfer.pipelines.layouts import ImageFile, Listing
from fasttransfer.pipelines.store import Digest, Kind, expected_bytes, file_facts, shard_name

SHARD_BYTES = 256 << 20
DONE = ".done"

_BLOCK = 512  # the unit of a tar


class RefusedImage(NamedTuple):
    """An image that cannot be decoded."""

    path: str
    reason: str


class ShardRange(NamedTuple):
    """The images of a part's list that go into one shard."""

    part: str
    file: str
    images: Sequence[ImageFile]


class ShardRecord(NamedTuple):
    """A complete shard.

    Attributes:
        rows: images in the shard.
        bytes: size of its file.
        checksum: XXH3-128 of its file.
        sizes: bytes of each JPEG; empty in a raw store.
        refused: images of the range that cannot be decoded.
    """

    rows: int
    bytes: int
    checksum: str
    sizes: list[int]
    refused: list[RefusedImage]


def images_per_shard(kind: Kind, size: int) -> int:
    """Return how many images of a list become one shard of about `SHARD_BYTES`."""
    return max(1, SHARD_BYTES // expected_bytes(kind, 1, size))


def plan_shards(listing: Listing, kind: Kind, size: int) -> list[ShardRange]:
    """Return the ranges of both parts, in the order in which they are written."""
    step = images_per_shard(kind, size)
    plan = []
    for part, images in listing.parts.items():
        for number, start in enumerate(range(0, len(images), step)):
            plan.append(ShardRange(part, shard_name(part, number, kind), images[start : start + step]))
    return plan


def write_images(
    file: IO[bytes], kind: Kind, images: Iterable[tuple[int, Pixels | bytes]], *, size: int, row: int, digest: Digest
) -> list[int]:
    """Write a shard into an open, empty file; return the bytes of each image.

    Args:
        images: label and either (size, size, 3) uint8 pixels or a JPEG, by kind.
        row: number in the part of the first image.
        digest: fed every image.

    Raises:
        OSError: the disk is full or fails.
    """
    sizes: list[int] = []

    def add(image: Pixels | bytes) -> memoryview:
        data = memoryview(image if isinstance(image, bytes) else image.data).cast("B")
        digest.images(data)
        sizes.append(len(data))
        return data

    if kind == "raw":
        file.write(npy_header((0, size, size, 3)))
        for _, image in images:
            file.write(add(image))
        file.seek(0)
        file.write(npy_header((len(sizes), size, size, 3)))
    else:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for label, image in images:
                key = f"{row + len(sizes):08d}"
                for name, data in ((f"{key}.jpg", add(image)), (f"{key}.cls", str(label).encode())):
                    member = tarfile.TarInfo(name)  # a function of its name and data: no times or owners, mode 0644
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return sizes


def complete_shard(shard: Path, kind: Kind, sizes: list[int], refused: list[RefusedImage]) -> ShardRecord:
    """Flush a written shard to disk, write its record and return it.

    Raises:
        OSError: the disk is full or fails.
        InputError: the record cannot be written.
    """
    with open(shard, "rb") as file:
        os.fsync(file.fileno())
    facts = file_facts(shard)
    record = ShardRecord(len(sizes), facts["bytes"], facts["xxh3_128"], sizes if kind == "jpeg" else [], refused)
    write_sealed(shard.with_name(shard.name + DONE), record)
    return record


def read_record(shard: Path) -> ShardRecord | None:
    """Return the record of a shard; None where there is none, or a damaged one."""
    values = read_sealed(shard.with_name(shard.name + DONE))
    if values is None:
        return None
    record = ShardRecord(*values)
    return record._replace(refused=[RefusedImage(*each) for each in record.refused])


def read_back(shard: Path, kind: Kind, record: ShardRecord, digest: Digest) -> bool:
    """Return whether a file is the shard of a record; if so, feed its images to `digest`."""
    try:
        data = memoryview(shard.read_bytes())
    except OSError:
        return False
    if xxhash.xxh3_128_hexdigest(data) != record.checksum:
        return False
    if kind == "raw":
        digest.images(data[len(npy_header((record.rows, 1, 1, 3))) :])
    else:
        for offset, size in jpeg_index([record.sizes]).tolist():
            digest.images(data[offset : offset + size])
    return True


def write_sealed(path: Path, value: Any) -> None:
    """Write a JSON value behind its checksum: whole or not at all.

    Raises:
        InputError: the disk is full, read-only or not ours to write.
    """
    text = json.dumps(value).encode()
    with replace_file(path) as file:
        file.write(xxhash.xxh3_64_hexdigest(text).encode() + b" " + text)


def read_sealed(path: Path) -> Any | None:
    """Return what `write_sealed` wrote; None where the file is absent, unreadable or changed."""
    try:
        checksum, _, text = path.read_bytes().partition(b" ")
    except OSError:
        return None
    return json.loads(text) if xxhash.xxh3_64_hexdigest(text).encode() == checksum else None


def jpeg_index(shards: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """Return (n, 2) int64, the offset and size of each JPEG in its shard, from the sizes in each shard."""
    index = [np.empty((0, 2), np.int64)]
    for some in shards:
        sizes = np.asarray(some, dtype=np.int64)
        steps = 3 * _BLOCK + -(-sizes // _BLOCK) * _BLOCK  # two headers, the label's block, the JPEG
        index.append(np.stack([np.cumsum(steps) - steps + _BLOCK, sizes], axis=1))
    return np.concatenate(index)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a NumPy file of uint8; its length is the same for any number of images."""
    memory = io.BytesIO()
    np.lib.format.write_array_header_1_0(memory, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return memory.getvalue()
