"""Shards: files of features at a cut, written once, verified at every read, read by threads ahead of need.

An entry of the feature cache is a list of records, each the features of one image in one view, cut into shards of a
few hundred MB. The header of a shard has the identity of the entry, the shard's place in it and the number of its first
record. csrc/shards/format.h describes the layout on disk.

    with write_shard(folder / "00000.shard", entry=key, position=0, first=0, shape=(256, 6, 6), packed=True) as shard:
        for features in batches:
            shard.append(features)

    with ShardReader(sorted(folder.glob("*.shard")), entry=key, shape=(256, 6, 6)) as reader:
        for rows, features in zip(order, reader.batches(order)):
            ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import replace_file
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.ops import PackedFeatures

VERSION = 2
"""Version of the format; shards of another one are refused. It is part of an entry's key."""

_shards: Any = None
_load_error = ""
try:
    _shards = import_module("fasttransfer.features._shards")
except ImportError as error:
    _load_error = str(error)
else:
    if _shards.VERSION != VERSION:
        _shards, _load_error = None, f"it is a build of format {_shards.VERSION}, this source has {VERSION}"

_IDENTITY = 64  # bytes
_DENSE = 15 / 16  # share of features that are not zero, from which a mask takes more than it saves


class ShardWriter:
    """The writer of one shard, see `write_shard`."""

    def __init__(self, file: int, entry: str, position: int, first: int, shape: Sequence[int], packed: bool) -> None:
        self._shape = tuple(shape)
        self._writer = _module().Writer(file, _checked(entry), position, first, prod(shape), packed)

    @property
    def records(self) -> int:
        """Return the number of records appended so far."""
        return int(self._writer.records)

    @property
    def bytes(self) -> int:
        """Return the bytes that header and records take."""
        return int(self._writer.bytes)

    def append(self, x: Tensor) -> None:
        """Append images, a record each, in the order of memory, so that channels come first.

        Args:
            x: (N, *shape) bfloat16 on the CPU; four dimensions in channels-last memory, two contiguous.

        Raises:
            RuntimeError: another type, shape, device or memory order.
            OSError: the disk is full; inside `write_shard` that becomes an `InputError`.
        """
        _check_features(x, self._shape)
        self._writer.append(x.data_ptr(), len(x))

    def finish(self) -> None:
        """Write index and footer; `write_shard` calls it."""
        self._writer.finish()


@contextmanager
def write_shard(
    path: Path, *, entry: str, position: int, first: int, shape: Sequence[int], packed: bool
) -> Iterator[ShardWriter]:
    """Yield the writer of a shard that is whole or absent: written under a temporary name, flushed to disk, renamed.

    Args:
        path: of the shard, in a folder that exists. A file that is there is replaced.
        entry: the identity of the entry, at most 64 bytes: a digest of all that determines its features.
        position: place among the entry's shards, from 0.
        first: the number in the entry of this shard's first record.
        shape: of one record: (C, H, W) or (E,).
        packed: whether zeros are left out and values stored in 12 bits where they allow it, see `should_pack`.

    Raises:
        InputError: the disk is full, read-only or not ours to write; the native module is missing.
    """
    with replace_file(path) as file:
        writer = ShardWriter(file.fileno(), entry, position, first, shape, packed)
        yield writer
        writer.finish()


class ShardReader:
    """The shards of an entry as one list of records.

    Opening verifies headers, footers and indices; every record is verified each time it is read. Files are mapped into
    memory: they must not be changed in place while they are open, which nothing of this project does; removing them is
    fine. Not to be used after a fork.

    Args:
        paths: all shards, in order.
        entry: the identity that they were written with.
        shape: of one record: (C, H, W) or (E,).
        threads: that read, beside the caller when it waits; by default one per core.

    Raises:
        CorruptFileError: a shard is damaged, cut short, of another entry, at another place, or of a later version.
        FileNotFoundError: a shard is missing.
        OSError: one cannot be read.
        InputError: the native module is missing.
    """

    def __init__(self, paths: Sequence[Path], *, entry: str, shape: Sequence[int], threads: int | None = None) -> None:
        threads = threads or machine.cores()
        self.shape = tuple(shape)
        module = _module()
        with _corruption():
            self._reader: Any = module.Reader([str(p) for p in paths], _checked(entry), prod(shape), threads)

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._reader.records)

    @property
    def bytes(self) -> int:
        """Return the bytes that the files take."""
        return int(self._reader.bytes)

    @property
    def packed(self) -> bool:
        """Return whether every shard is packed."""
        return bool(self._reader.packed)

    def close(self) -> None:
        """End the threads and let go of the files, once pending reads have ended."""
        self._reader = None

    def read(self, rows: Tensor | Sequence[int], out: Tensor | None = None) -> Tensor:
        """Read records in any order, unpacked.

        Args:
            rows: (N,) int64, numbered through all shards.
            out: (N, *shape) bfloat16 on the CPU, written to, e.g. in pinned memory; new memory by default.

        Returns:
            (N, *shape) bfloat16, four dimensions in channels-last memory.

        Raises:
            CorruptFileError: a record is not what was written. Nothing in `out` may be used.
            IndexError: no such record.
            RuntimeError: `out` is of another type, shape, device or memory order.
        """
        return self.start(rows, out)()

    def start(self, rows: Tensor | Sequence[int], out: Tensor | None = None) -> Callable[[], Tensor]:
        """Start to read as `read` does, and return the function that waits for the records and returns them.

        The threads read while the caller does something else; dropping the function ends the reading. `out` is kept
        alive and must not be touched before that function has returned it.
        """
        numbers = _listed(rows)
        if out is None:
            out = empty_features(len(numbers), self.shape)
        _check_features(out, self.shape)
        if len(out) != len(numbers):
            raise RuntimeError(f"out has room for {len(out)} images, {len(numbers)} are to be read")
        return partial(_wait, self._reader.read_dense(numbers, out.data_ptr(), out))

    def batches(
        self, order: Iterable[Tensor | Sequence[int]], *, ahead: int = 2, out: Sequence[Tensor] | None = None
    ) -> Generator[Tensor, None, None]:
        """Yield one tensor per list of rows in `order`, while the threads are up to `ahead` of them further on.

        Args:
            order: lists of rows, each as for `read`.
            ahead: number of batches that are read beside the one that is due.
            out: `ahead` + 1 tensors as for `read`, with room for the longest list. Batches lie in them in turn, and
                each is overwritten when the caller takes the next. By default every batch is new memory.

        Raises:
            CorruptFileError, IndexError, RuntimeError: see `read`; raised when the batch is due.
            ValueError: `out` has another number of tensors.
        """
        if out is not None and len(out) != ahead + 1:
            raise ValueError(f"out has {len(out)} tensors, {ahead + 1} are needed to read {ahead} batches ahead")
        reads: deque[Callable[[], Tensor]] = deque()
        for i, rows in enumerate(order):
            reads.append(self.start(rows, None if out is None else out[i % len(out)][: len(rows)]))
            if len(reads) > ahead:
                yield reads.popleft()()
        while reads:
            yield reads.popleft()()

    def read_packed(self, rows: Tensor | Sequence[int], *, pinned: bool = False) -> PackedFeatures:
        """Read records as they lie on disk, verified, for `unpack_features` on the device that they are sent to.

        Args:
            rows: see `read`.
            pinned: whether into memory from which a GPU copies without waiting.

        Raises:
            CorruptFileError, IndexError: see `read`.
            RuntimeError: the shards are not packed.
        """
        if not self.packed:
            raise RuntimeError("read_packed: these shards are dense, only read() is for them")
        numbers = _listed(rows)
        n, bytes_ = len(numbers), -(-prod(self.shape) // 64) * 8
        offsets = torch.empty(n + 1, dtype=torch.int64, pin_memory=pinned)
        self._reader.offsets(numbers, offsets.data_ptr())
        mask = torch.empty((n, bytes_), dtype=torch.uint8, pin_memory=pinned)
        values = torch.empty(int(offsets[n]), dtype=torch.bfloat16, pin_memory=pinned)
        packed = PackedFeatures(mask, values, offsets)
        with _corruption():
            self._reader.read_packed(numbers, mask.data_ptr(), offsets.data_ptr(), values.data_ptr(), packed).wait()
        return packed

    def verify(self) -> None:
        """Read everything once.

        Raises:
            CorruptFileError: a record is not what was written.
        """
        order = (range(at, min(at + 256, len(self))) for at in range(0, len(self), 256))
        for _ in self.batches(order, ahead=1):
            pass


def _wait(pending: Any) -> Tensor:
    with _corruption():
        tensor: Tensor = pending.wait()
    return tensor


@contextmanager
def _corruption() -> Iterator[None]:
    try:
        yield
    except _module().Damaged as error:
        raise CorruptFileError(str(error)) from None


def _module() -> Any:
    if _shards is None:
        raise InputError(
            f"the feature cache needs fasttransfer.features._shards, which does not load ({_load_error}): build it in "
            "the source tree with a C++ compiler and pip install --no-build-isolation --editable ."
        )
    return _shards


def _checked(entry: str) -> str:
    if not 0 < len(entry.encode()) <= _IDENTITY:
        raise RuntimeError(f"an entry's identity has 1 to {_IDENTITY} bytes, not {len(entry.encode())}")
    return entry


def _listed(rows: Tensor | Sequence[int]) -> list[int]:
    return rows.tolist() if isinstance(rows, Tensor) else list(rows)


def should_pack(x: Tensor) -> bool:
    """Return whether so many features are zero that storing them packed takes fewer bytes."""
    return int(x.count_nonzero()) < _DENSE * x.numel()


def memory_format(shape: Sequence[int]) -> torch.memory_format:
    """Return the memory format of a batch of records of this shape."""
    return torch.channels_last if len(shape) == 3 else torch.contiguous_format


def empty_features(n: int, shape: Sequence[int]) -> Tensor:
    """Return (n, *shape) bfloat16 on the CPU, not initialised, in the memory format of shards."""
    return torch.empty((n, *shape), dtype=torch.bfloat16, memory_format=memory_format(shape))


def _check_features(x: Tensor, shape: Sequence[int]) -> None:
    if x.dtype != torch.bfloat16 or x.shape[1:] != tuple(shape) or x.device.type != "cpu":
        raise RuntimeError(f"features must be (N, {', '.join(map(str, shape))}) bfloat16 on the CPU")
    if not x.is_contiguous(memory_format=memory_format(shape)):
        raise RuntimeError("features of four dimensions must be in channels-last memory, of two contiguous")
