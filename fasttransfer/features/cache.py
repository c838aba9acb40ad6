"""The feature cache: frozen features, computed once, found by what determines them.

An entry is a folder named by the digest of its key. It appears whole, by renaming: a process that is killed leaves a
temporary folder that the next one sweeps away, and that no reader could take for an entry.

    entry = find_entry(root, key)
    if entry is None:
        with make_entries(root, [(key, info)], images) as writers:
            for features in batches:
                for writer in writers:
                    writer.append(features)
        entry = find_entry(root, key)
    with entry.open() as reader:
        ...

The process that makes an entry holds the lock of a file beside it. Readers hold none, so that a cache on a read-only
disk can be read; an entry that is removed stays readable to those who have it open.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
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
from fasttransfer.features.cache_entry import CacheEntry, EntryInfo, FeatureShard, UnreadableEntryError, print_warning
from fasttransfer.features.cache_key import FORMAT, CacheKey
from fasttransfer.features.shards import ShardWriter, should_pack, write_shard
from fasttransfer.pipelines.streams import TaskImages

SHARD_BYTES = 256 << 20
"""Size at which a shard ends and the next one begins."""

_NAME = re.compile(r"[0-9a-f]{32}")


def cache_root() -> Path:
    """Return the folder of the user's cache."""
    return cache_folder() / "features"


def find_entry(root: Path, key: CacheKey, log: Log = print_warning) -> CacheEntry | None:
    """Return the entry of `key`, whole as far as its own files and their sizes tell; the reader verifies the rest.

    A damaged one is quarantined and logged, and None returned. The process that makes the entry must not call this.

    Raises:
        UnreadableEntryError: it cannot be read, or is of another version.
    """
    return on_disk.find_in_folder(root / key.digest(), log)


class EntryWriter:
    """The writer of one entry, see `make_entries`; `file` is open while a shard is being written."""

    def __init__(self, key: CacheKey, info: EntryInfo, images: TaskImages, folder: Path) -> None:
        self.key, self.info, self.images, self.folder = key, info, images, folder
        self.shape = key.shape
        self.file = ExitStack()
        self._records = len(images) * len(key.views)
        self._packed = False
        self._shards: list[FeatureShard] = []
        self._done = 0
        self._writer: ShardWriter | None = None

    def append(self, x: Tensor) -> None:
        """Add records, which come in order: all views of the first image, all of the second …

        Args:
            x: (N, *shape) bfloat16 on the CPU; four dimensions in channels-last memory, two contiguous.

        Raises:
            InputError: the disk is full, or will be.
            RuntimeError: another type, shape, device or memory order.
        """
        if not len(x):
            return
        if not self._done:
            self._packed = should_pack(x)
        with disk_errors(self.folder):
            if self._writer is None:
                self._writer = self.file.enter_context(
                    write_shard(
                        on_disk.shard_path(self.folder, len(self._shards)),
                        entry=self.key.digest(),
                        position=len(self._shards),
                        first=self._done,
                        shape=self.shape,
                        packed=self._packed,
                    )
                )
            self._writer.append(x)
            if not self._done:
                self._need_room(self._writer.bytes / len(x) * self._records)
            self._done += len(x)
            if self._writer.bytes >= SHARD_BYTES:
                self._end_shard()

    def finish(self) -> None:
        """Write the end of the last shard and `entry.json`; `make_entries` calls it."""
        if self._done != self._records:
            raise RuntimeError(f"{self.folder}: {self._done} records were appended, the entry has {self._records}")
        with disk_errors(self.folder):
            self._end_shard()
            (self.folder / on_disk.USES).touch()
        listing = io.BytesIO()
        np.save(listing, np.stack([self.images.rows, self.images.labels], axis=1), allow_pickle=False)
        with replace_file(self.folder / on_disk.IMAGES) as file:
            file.write(listing.getbuffer())
        facts = {
            "format": FORMAT,
            "about": asdict(self.info),
            "key": self.key.facts(),
            "made": time.time_ns(),  # so that an entry that is made again is another one
            "packed": self._packed,
            "images": len(self.images),
            "listed": xxhash.xxh3_128_hexdigest(listing.getbuffer()),
            "shards": [shard._asdict() for shard in self._shards],
        }
        with replace_file(self.folder / on_disk.MANIFEST) as file:
            file.write(on_disk.encode_manifest(facts))

    def _end_shard(self) -> None:
        if self._writer is None:
            return
        self.file.close()
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


@contextmanager
def make_entries(
    root: Path, wanted: Sequence[tuple[CacheKey, EntryInfo]], images: TaskImages, log: Log = print_warning
) -> Iterator[list[EntryWriter]]:
    """Yield a writer for each entry of `wanted` that is not there, in that order; there may be none.

    The entries appear when the context ends well, and not at all when it ends otherwise. A process that wants an entry
    that another one is making logs that, and waits here until it is there.

    Args:
        root: the folder of the cache.
        wanted: keys and descriptions, all over the same images.
        images: these images.

    Raises:
        InputError: the disk is full, read-only or not ours to write; the native module is missing.
    """
    make_folder(root)
    by_digest = {key.digest(): (key, info) for key, info in wanted}
    with ExitStack() as locks:
        missing: set[str] = set()
        for digest in sorted(by_digest):  # all take locks in one order, so that none waits for another forever
            folder, (key, info) = root / digest, by_digest[digest]
            with suppress(FileNotFoundError, CorruptFileError):
                on_disk.read_entry(folder)  # without the lock: the disk may be read-only
                continue
            waiting = f"waiting for another process that computes features of {info.network} at cut {key.cut}"
            with ExitStack() as lock:
                lock.enter_context(hold_lock(lock_of(folder), partial(log, waiting)))
                if on_disk.find_locked(folder, log) is None:
                    missing.add(digest)
                    locks.enter_context(lock.pop_all())
        if not missing:
            yield []
            return
        sweep_unfinished(root)
        with ExitStack() as unfinished:
            writers = []
            for digest, (key, info) in by_digest.items():
                if digest in missing:
                    temporary = temporary_of(root / digest)
                    with disk_errors(root):
                        on_disk.remove_path(temporary)
                        temporary.mkdir()
                    writer = EntryWriter(key, info, images, temporary)
                    unfinished.callback(shutil.rmtree, temporary, ignore_errors=True)
                    # Leaves the file of an unfinished shard without writing its end.
                    unfinished.callback(writer.file.__exit__, GeneratorExit, GeneratorExit(), None)
                    writers.append(writer)
            yield writers
            for writer in writers:
                writer.finish()
            with disk_errors(root):
                for writer in writers:
                    writer.folder.rename(root / writer.key.digest())
                sync_folder(root)


def list_entries(root: Path, log: Log = lambda sentence: None) -> list[CacheEntry]:
    """Return every entry that is whole, see `find_entry`; errors of the others are logged, and they stay."""
    entries = []
    for folder in list_folders(root):
        try:
            entries.append(on_disk.read_entry(folder))
        except FileNotFoundError:
            continue  # removed by another process
        except (CorruptFileError, UnreadableEntryError) as error:
            log(str(error))
    return entries


def list_folders(root: Path, suffix: str = "") -> list[Path]:
    """Return the folders of all entries, whole or not; of those that are quarantined with their suffix."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise on_disk.unreadable_error(root, error) from error
    return [root / name for name in names if name.endswith(suffix) and _NAME.fullmatch(name.removesuffix(suffix))]


def list_damaged(root: Path) -> list[Path]:
    """Return the folders of quarantined entries."""
    return list_folders(root, on_disk.DAMAGED)


def prune(root: Path, most_bytes: int) -> list[CacheEntry]:
    """Remove entries, those that were not used for longest first, until the rest take at most `most_bytes`.

    Leftovers of killed processes and quarantined entries go in any case. Entries that are being made stay. One that is
    being read stays readable to its reader, and the disk gets its bytes back when that ends.

    Returns:
        The entries that were removed.

    Raises:
        InputError: the cache is not ours to write.
    """
    remove_leftovers(root)
    entries = sorted(list_entries(root), key=lambda entry: entry.use.last)
    total, removed = sum(entry.bytes for entry in entries), []
    for entry in entries:
        if total <= most_bytes:
            break
        if remove_entry(entry.folder):
            total -= entry.bytes
            removed.append(entry)
    return removed


def remove_leftovers(root: Path) -> None:
    """Remove quarantined entries, and what killed processes left.

    Raises:
        InputError: the cache is not ours to write.
    """
    with disk_errors(root):
        sweep_unfinished(root)
        for folder in list_damaged(root):
            on_disk.remove_path(folder)


def remove_entry(folder: Path) -> bool:
    """Remove the entry in `folder`, readable or not; return False if it is being made at this moment.

    Raises:
        InputError: the cache is not ours to write.
    """
    try:
        with hold_lock(lock_of(folder), _refuse_to_wait), disk_errors(folder):
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


def _refuse_to_wait() -> None:
    raise _BusyError
