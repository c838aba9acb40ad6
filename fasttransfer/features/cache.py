"""The feature cache: frozen features, computed once, found by what determines them.

An entry is a folder named by the digest of its key. It appears whole, by renaming: a process that is killed leaves a
temporary folder that the next one sweeps away, and that no reader could take for an entry.

    entry = find(root, key)
    if entry is None:
        with making(root, [(key, about)], images) as writers:
            for features in batches:
                for writer in writers:
                    writer.append(features)
        entry = find(root, key)
    with entry.open() as reader:
        ...

Whoever makes an entry holds the lock of a file beside it. Readers hold none, so that a cache on a read-only disk can
be read; an entry that is removed stays readable to those who have it open.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import xxhash
from torch import Tensor

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder, disk_errors, hold_lock, make_folder, replace_file, sync_folder
from fasttransfer.core.make_once import lock_of, sweep_unfinished, temporary_of
from fasttransfer.core.progress import Log, format_bytes
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.features import cache_entry as on_disk
from fasttransfer.features.cache_entry import (
    DAMAGED,
    IMAGES,
    MANIFEST,
    USES,
    CacheEntry,
    EntryInfo,
    FeatureShard,
    OtherVersionError,
    RemovedError,
    UnreadableEntryError,
    print_warning,
    quarantine,
)
from fasttransfer.features.cache_key import FORMAT, CacheKey
from fasttransfer.features.shards import ShardWriter, write_shard
from fasttransfer.pipelines.streams import TaskImages

__all__ = [
    "SHARD_BYTES",
    "CacheEntry",
    "CacheKey",
    "EntryInfo",
    "EntryWriter",
    "Log",
    "OtherVersionError",
    "RemovedError",
    "UnreadableEntryError",
    "cache_root",
    "count_use",
    "find_entry",
    "list_damaged",
    "list_entries",
    "list_folders",
    "make_entries",
    "print_warning",
    "prune",
    "quarantine",
    "remove_entry",
    "remove_folder",
    "remove_leftovers",
    "verify_entry",
]  # fmt: skip

SHARD_BYTES = 256 << 20
"""A shard that has reached this size is ended."""

_NAME = re.compile(r"[0-9a-f]{32}")
_DENSE = 15 / 16  # share of features that are not zero, from which the mask takes more than it saves


def cache_root() -> Path:
    """The folder of the user's cache."""
    return cache_folder() / "features"


def find_entry(root: Path, key: CacheKey, log: Log = print_warning) -> CacheEntry | None:
    """The entry of `key`, whole as far as its own files and their sizes tell; the reader verifies the rest.

    One that is damaged is set aside, which is said, and not found. Not to be called by who is making it.

    Raises:
        OtherVersionError, UnreadableError: it is of another version, or cannot be read.
    """
    return on_disk.find_entry(root / key.digest(), log)


# -- making ---------------------------------------------------------------------------------------------------------


class EntryWriter:
    """What `make_entries` hands out for each entry that is not there."""

    def __init__(self, key: CacheKey, about: EntryInfo, images: TaskImages, folder: Path) -> None:
        self.key, self.about, self.images, self.folder = key, about, images, folder
        self.shape = key.geometry.cut_shape(key.cut)
        self._records = len(images) * len(key.views)
        self._packed: bool | None = None
        self._shards: list[FeatureShard] = []
        self._done = 0
        self._writer: ShardWriter | None = None
        self._file = ExitStack()  # of the shard that is being written

    def append(self, x: Tensor) -> None:
        """Adds records, which come in order: all views of the first image, all of the second …

        Args:
            x: (N, *shape) bfloat16 on the CPU; four dimensions in channels-last memory, two contiguous.

        Raises:
            InputError: the disk is full, or will be.
            RuntimeError: another type, shape, device or memory order.
        """
        if not len(x):
            return
        if self._packed is None:
            self._packed = int(x.count_nonzero()) < _DENSE * x.numel()
        with disk_errors(self.folder):
            if self._writer is None:
                self._writer = self._begin()
            self._writer.append(x)
            if not self._done:
                self._need_room(self._writer.bytes / len(x) * self._records)
            self._done += len(x)
            if self._writer.bytes >= SHARD_BYTES:
                self._end()

    def finish(self) -> None:
        """The last shard and `entry.json`; `make_entries` calls it."""
        if self._done != self._records:
            raise RuntimeError(f"{self.folder}: {self._done} records were appended, the entry has {self._records}")
        with disk_errors(self.folder):
            self._end()
            (self.folder / USES).touch()
        listed = io.BytesIO()
        np.save(listed, np.stack([self.images.rows, self.images.labels], axis=1), allow_pickle=False)
        with replace_file(self.folder / IMAGES) as file:
            file.write(listed.getbuffer())
        said = {
            "format": FORMAT,
            "about": asdict(self.about),
            "key": self.key.facts(),
            "made": time.time_ns(),  # so that an entry that is made again is another one
            "packed": bool(self._packed),
            "images": len(self.images),
            "listed": xxhash.xxh3_128_hexdigest(listed.getbuffer()),
            "shards": [shard._asdict() for shard in self._shards],
        }
        with replace_file(self.folder / MANIFEST) as file:
            file.write(on_disk.encode_manifest(said))

    def abandon(self) -> None:
        """Closes what is open, without an end; `make_entries` calls it."""
        self._file.__exit__(_Abandoned, _Abandoned(), None)

    def _begin(self) -> ShardWriter:
        position = len(self._shards)
        return self._file.enter_context(
            write_shard(
                on_disk.shard_path(self.folder, position),
                entry=self.key.digest(),
                position=position,
                first=self._done,
                shape=self.shape,
                packed=bool(self._packed),
            )
        )

    def _end(self) -> None:
        if self._writer is None:
            return
        self._file.close()
        path = on_disk.shard_path(self.folder, len(self._shards))
        self._shards.append(FeatureShard(self._writer.records, path.stat().st_size, on_disk.footer_checksum(path)))
        self._writer = None

    def _need_room(self, expected: float) -> None:
        free = shutil.disk_usage(self.folder).free
        if expected > free:
            raise InputError(
                f"{self.folder.parent}: features of cut {self.key.cut} will take about {format_bytes(expected)}, the "
                f"disk has {format_bytes(free)} free: remove entries with fasttransfer cache prune, or set "
                "FASTTRANSFER_CACHE to a folder on another disk"
            )


class _Abandoned(Exception):
    pass


@contextmanager
def make_entries(
    root: Path, wanted: Sequence[tuple[CacheKey, EntryInfo]], images: TaskImages, log: Log = print_warning
) -> Iterator[list[EntryWriter]]:
    """A writer for each entry of `wanted` that is not there, in that order; there may be none.

    They appear when the context ends well, and not at all when it ends otherwise. Another process that wants one of
    them waits here until it is there; so does this one, and says so.

    Args:
        root: the folder of the cache.
        wanted: keys, and what to say of them.
        images: of which all of them are.

    Raises:
        InputError: the disk is full, read-only or not ours to write; the native module is missing.
    """
    make_folder(root)
    by_digest = {key.digest(): (key, about) for key, about in wanted}
    with ExitStack() as locks:
        mine: set[str] = set()
        for digest in sorted(by_digest):  # all take locks in one order, so that none waits for another forever
            if _is_whole(root / digest):
                continue
            lock = ExitStack()
            lock.enter_context(hold_lock(lock_of(root / digest), _waiting(*by_digest[digest], log)))
            locks.enter_context(lock)
            if _is_there(root / digest, log):
                lock.close()
            else:
                mine.add(digest)
        if not mine:
            yield []
            return
        sweep_unfinished(root)
        writers: list[EntryWriter] = []
        try:
            with disk_errors(root):
                for digest, (key, about) in by_digest.items():
                    if digest in mine:
                        temporary = temporary_of(root / digest)
                        on_disk.remove_path(temporary)
                        temporary.mkdir()
                        writers.append(EntryWriter(key, about, images, temporary))
            yield writers
            for writer in writers:
                writer.finish()
            with disk_errors(root):
                for writer in writers:
                    writer.folder.rename(root / writer.key.digest())
                sync_folder(root)
        finally:
            for writer in writers:
                writer.abandon()
                shutil.rmtree(writer.folder, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        on_disk.read_entry(folder)
    except (FileNotFoundError, CorruptFileError):
        return False
    return True


def _is_there(folder: Path, log: Log) -> bool:
    """As `find_entry`, for who holds the lock."""
    try:
        on_disk.read_entry(folder)
    except FileNotFoundError:
        return False
    except CorruptFileError as error:
        on_disk.quarantine_locked(folder, error, log)
        return False
    return True


def _waiting(key: CacheKey, about: EntryInfo, log: Log) -> Callable[[], None]:
    return lambda: log(f"waiting for another process that computes features of {about.network} at cut {key.cut}")


# -- using ----------------------------------------------------------------------------------------------------------


def count_use(entry: CacheEntry) -> None:
    """Counts a use. Any number of processes may do so; where the cache cannot be written nothing is counted."""
    with suppress(OSError):
        file = os.open(entry.folder / USES, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.write(file, b".")
        finally:
            os.close(file)


def verify_entry(entry: CacheEntry, log: Log = print_warning) -> None:
    """Reads everything back.

    Raises:
        CorruptFileError: something is damaged; the entry has been set aside.
        RemovedError, UnreadableError: as `CacheEntry.open`.
    """
    entry.listing(log)
    with entry.open(log=log) as reader:
        try:
            reader.verify()
        except CorruptFileError as error:
            quarantine(entry, error, log)
            raise


# -- all of them ----------------------------------------------------------------------------------------------------


def list_entries(root: Path, log: Log = lambda sentence: None) -> list[CacheEntry]:
    """Every entry that is whole, as `find_entry` sees it; what is wrong with the others is said, and they stay."""
    found = []
    for folder in list_folders(root):
        try:
            found.append(on_disk.read_entry(folder))
        except FileNotFoundError:
            continue  # removed by another
        except (CorruptFileError, UnreadableEntryError) as error:
            log(str(error))
    return found


def list_folders(root: Path) -> list[Path]:
    """Those of all entries, whatever is in them."""
    return _listed(root)


def list_damaged(root: Path) -> list[Path]:
    """The folders that were set aside."""
    return _listed(root, DAMAGED)


def prune(root: Path, most_bytes: int) -> list[CacheEntry]:
    """Removes entries, those that were not used for longest first, until the rest take at most `most_bytes`.

    What killed processes left and what was set aside goes in any case. Entries that are being made stay. One that is
    being read stays readable to its reader, and the disk gets its bytes back when that ends.

    Returns:
        The entries that were removed.

    Raises:
        InputError: the cache is not ours to write.
    """
    remove_leftovers(root)
    there = sorted(list_entries(root), key=lambda entry: entry.use.last)
    total, removed = sum(entry.bytes for entry in there), []
    for entry in there:
        if total <= most_bytes:
            break
        if remove_entry(entry):
            total -= entry.bytes
            removed.append(entry)
    return removed


def remove_leftovers(root: Path) -> None:
    """Removes what was set aside, and what killed processes left.

    Raises:
        InputError: the cache is not ours to write.
    """
    with disk_errors(root):
        sweep_unfinished(root)
        for folder in list_damaged(root):
            on_disk.remove_path(folder)


def remove_entry(entry: CacheEntry) -> bool:
    """Removes an entry; False if it is being made at this moment."""
    return remove_folder(entry.folder)


def remove_folder(folder: Path) -> bool:
    """As `remove_entry`, for a folder whose entry may not be readable."""
    try:
        with hold_lock(lock_of(folder), _refuse), disk_errors(folder):
            temporary = temporary_of(folder)
            on_disk.remove_path(temporary)
            with suppress(FileNotFoundError):
                folder.rename(temporary)  # half an entry must not have its name
            on_disk.remove_path(temporary)
    except _BusyError:
        return False
    return True


class _BusyError(Exception):
    pass


def _refuse() -> None:
    raise _BusyError


def _listed(root: Path, suffix: str = "") -> list[Path]:
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise on_disk.unreadable_error(root, error) from error
    return [
        root / name for name in sorted(names) if name.endswith(suffix) and _NAME.fullmatch(name.removesuffix(suffix))
    ]
