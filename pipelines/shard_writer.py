"""Images into the shards of a part: written in order, digested on the way, flushed in the background.

A shard is never memory-mapped while it is written: a page of a mapped file costs more than the copy, and a disk found
full in the middle of one kills the process.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from fasttransfer.pipelines.store import Digest, Kind, Pixels, shard_name

SHARD_BYTES = 256 << 20

_BLOCK = 512  # tar counts in these
_RECORD = 20 * _BLOCK  # and ends at a multiple of this
_PIECE = 4 << 20  # bytes read at a time


class ImageShard(NamedTuple):
    """A shard that is complete."""

    rows: int
    bytes: int
    checksum: str  # XXH3-128 of the file
    sizes: list[int]  # bytes of each JPEG; empty in a raw store


class Flusher:
    """Puts one shard on disk while the next is written; a third waits, so that little is ever on its way."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._last: Future[None] | None = None

    def put(self, work: Callable[[], None]) -> None:
        """Does `work` after all that was put before it.

        Raises:
            OSError: from earlier work.
        """
        self.wait()
        self._last = self._pool.submit(work)

    def wait(self) -> None:
        """Returns when all is done; raises what it raised."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """Waits for what is under way, whatever becomes of it."""
        self._pool.shutdown()


@contextmanager
def flusher() -> Iterator[Flusher]:
    """A `Flusher` whose work is done on a clean exit."""
    with closing(Flusher()) as one:
        yield one
        one.wait()


class PartWriter:
    """Appends images to the shards of `part` in `folder`.

    Args:
        first: the shard to begin with; row: the first row of it.
        most: images that may come at most.
        size: side of an image in pixels.
        digest: told every image.
        flusher: has each complete shard put on disk; `complete` is called then, in its thread.
    """

    def __init__(
        self, folder: Path, part: str, kind: Kind, *, first: int, row: int, most: int, size: int, digest: Digest,
        flusher: Flusher,
    ) -> None:  # fmt: skip
        self._folder, self._part, self._kind, self._size = folder, part, kind, size
        self._next, self._row, self._left = first, row, most
        self._digest, self._flusher = digest, flusher
        self._shard: _RawShard | _TarShard | None = None

    def add(self, image: Pixels | bytes, label: int) -> bool:
        """One image, (size, size, 3) uint8 or its JPEG; returns whether the shard is full: then call `cut`."""
        if self._shard is None:
            path = self._folder / shard_name(self._part, self._next, self._kind)
            self._shard = _RawShard(path, self._size, self._left) if self._kind == "raw" else _TarShard(path, self._row)
        data = memoryview(image if isinstance(image, bytes) else image.data).cast("B")
        self._digest.images(data)
        self._shard.add(data, label)
        self._row += 1
        self._left -= 1
        return self._shard.full

    def cut(self, complete: Callable[[ImageShard | None], None]) -> None:
        """Ends the shard; `complete` gets it when it is on disk, or None where none is begun."""
        self._flusher.wait()  # if it failed, before this shard is left to it
        if self._shard is None:
            self._flusher.put(lambda: complete(None))
            return
        shard, handle = self._shard.end(), self._shard.handle
        self._shard = None
        self._next += 1

        def flush() -> None:
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            complete(shard)

        self._flusher.put(flush)

    def close(self) -> None:
        """Gives up a shard that is begun."""
        if self._shard is not None:
            os.close(self._shard.handle)


class _RawShard:
    """A NumPy file whose room is reserved when it is begun."""

    def __init__(self, path: Path, size: int, most: int) -> None:
        self._row_bytes = size * size * 3
        self._rows = min(max(1, SHARD_BYTES // self._row_bytes), most)
        self._size, self._filled = size, 0
        header = npy_header((self._rows, size, size, 3))
        self._start = len(header)
        self.handle = _create(path)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.handle, 0, self._end_of(self._rows))
            _write(self.handle, header, 0)
        except OSError:
            os.close(self.handle)
            raise
        self._state = xxhash.xxh3_128(header)

    @property
    def full(self) -> bool:
        return self._filled == self._rows

    def add(self, pixels: memoryview, label: int) -> None:
        _write(self.handle, pixels, self._end_of(self._filled))
        self._state.update(pixels)
        self._filled += 1

    def end(self) -> ImageShard:
        if not self.full:  # what was left out shows in the header, with which the checksum begins
            os.ftruncate(self.handle, self._end_of(self._filled))
            _write(self.handle, npy_header((self._filled, self._size, self._size, 3)), 0)
            self._state = xxhash.xxh3_128()
            for start in range(0, self._end_of(self._filled), _PIECE):
                self._state.update(os.pread(self.handle, _PIECE, start))
        return ImageShard(self._filled, self._end_of(self._filled), self._state.hexdigest(), [])

    def _end_of(self, rows: int) -> int:
        return self._start + rows * self._row_bytes


class _TarShard:
    """A tar whose bytes are a function of the images: without times or owners."""

    def __init__(self, path: Path, row: int) -> None:
        self._row, self._bytes = row, 0
        self._sizes: list[int] = []
        self.handle = _create(path)
        self._state = xxhash.xxh3_128()

    @property
    def full(self) -> bool:
        return self._bytes >= SHARD_BYTES

    def add(self, jpeg: memoryview, label: int) -> None:
        key = f"{self._row + len(self._sizes):08d}"
        self._append(b"".join((*_member(f"{key}.jpg", jpeg), *_member(f"{key}.cls", str(label).encode()))))
        self._sizes.append(len(jpeg))

    def end(self) -> ImageShard:
        self._append(bytes(2 * _BLOCK + -(self._bytes + 2 * _BLOCK) % _RECORD))
        return ImageShard(len(self._sizes), self._bytes, self._state.hexdigest(), self._sizes)

    def _append(self, data: bytes) -> None:
        _write(self.handle, data, self._bytes)
        self._state.update(data)
        self._bytes += len(data)


def _member(name: str, data: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    info = tarfile.TarInfo(name)  # of an ordinary file, mode 0644, all else 0
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % _BLOCK)


def jpeg_index(shards: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """(n, 2) offset and size of each JPEG in its shard, from the sizes in each shard."""
    index = [np.empty((0, 2), np.int64)]
    for some in shards:
        sizes = np.asarray(some, dtype=np.int64)
        steps = 3 * _BLOCK + -(-sizes // _BLOCK) * _BLOCK  # two headers, the label's block, the JPEG
        index.append(np.stack([np.cumsum(steps) - steps + _BLOCK, sizes], axis=1))
    return np.concatenate(index)


def read_back(path: Path, kind: Kind, shard: ImageShard, digest: Digest) -> bool:
    """Whether the file is the shard that was written; tells `digest` its images on the way."""
    state = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            for length, is_image in _spans(kind, shard):
                left = length
                while left:
                    piece = file.read(min(left, _PIECE))
                    if not piece:
                        return False
                    state.update(piece)
                    if is_image:
                        digest.images(piece)
                    left -= len(piece)
            return not file.read(1) and state.hexdigest() == shard.checksum
    except OSError:
        return False


def _spans(kind: Kind, shard: ImageShard) -> Iterator[tuple[int, bool]]:
    """The bytes of a shard from its start: how many, and whether they are of images."""
    start = 0
    if kind == "raw":
        start = len(npy_header((shard.rows, 1, 1, 3)))
        yield start, False
        yield shard.bytes - start, True
        return
    for offset, size in jpeg_index([shard.sizes]).tolist():
        yield offset - start, False
        yield size, True
        start = offset + size
    yield shard.bytes - start, False


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a NumPy file of uint8; of the same length for any number of images."""
    memory = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(memory, description)
    return memory.getvalue()


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def _write(handle: int, data: bytes | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(handle, rest, offset)
        rest, offset = rest[written:], offset + written
