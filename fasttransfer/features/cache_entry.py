"""An entry of the feature cache on disk: a folder of shards with `entry.json`, which describes it.

`entry.json` has a checksum of itself and, of each shard, the one in its footer, which covers its index, which covers
its records. So a few bytes per shard tell whether an entry is whole; a reader verifies each record. `images.npy`,
(n, 2) int64, has the row in the store and the label of each image. Damaged entries are quarantined as
`<digest>.damaged` and never read.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import disk_errors, hold_lock, sync_folder
from fasttransfer.core.make_once import lock_of
from fasttransfer.core.progress import Log
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.features.cache_key import FORMAT, CacheKey
from fasttransfer.features.shards import ShardReader

MANIFEST = "entry.json"
IMAGES = "images.npy"
USES = "uses"
"""Name of a file that grows by a byte per use: appending needs no lock, and its time is that of the last use."""

DAMAGED = ".damaged"
_FOOTER_END = 16  # bytes: a shard's last checksum, and the mark behind it


def print_warning(sentence: str) -> None:
    """Print a sentence to stderr, the log of callers who name none."""
    print(f"fasttransfer: {sentence}", file=sys.stderr)


class UnreadableEntryError(InputError):
    """An entry that may be whole, but cannot be read now: without permission, of another version, removed meanwhile."""


@dataclass(frozen=True)
class EntryInfo:
    """A description of an entry for people; nothing of it is part of the key.

    Attributes:
        network: e.g. "baseA.s0"; study: the folder that it was trained in.
        data: the images, in the study's words; part: "train" or "val"; task: "A" or "B".
        classes: of the task, in the order of its labels.
    """

    network: str
    study: str
    data: str
    part: str
    task: str
    classes: tuple[str, ...]


class FeatureShard(NamedTuple):
    """A shard as `entry.json` lists it; `checksum` is the one in its footer."""

    records: int
    bytes: int
    checksum: str


class EntryUse(NamedTuple):
    """The number of uses of an entry, and the time of the last in seconds since 1970, or of its making."""

    hits: int
    last: float


@dataclass(frozen=True)
class CacheEntry:
    """Features of `images` images in each of `views` views: record number = image * views + view.

    Attributes:
        list_checksum: of `images.npy`.
        packed: whether stored without the zeros.
        checksum: of `entry.json`, and through the checksums in it of everything.
    """

    key: CacheKey
    folder: Path
    info: EntryInfo
    images: int
    list_checksum: str
    shards: tuple[FeatureShard, ...]
    packed: bool
    checksum: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one record: (C, H, W), (E,), or another of a network of a library."""
        return self.key.shape

    @property
    def views(self) -> int:
        """Return the number of views."""
        return len(self.key.views)

    @property
    def bytes(self) -> int:
        """Return the bytes that the shards take."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def dense(self) -> int:
        """Return the bytes of the same features as they are computed, in bfloat16."""
        return 2 * self.images * self.views * prod(self.shape)

    @property
    def use(self) -> EntryUse:
        """Return how often the entry was used until now."""
        for name in (USES, MANIFEST):
            with suppress(OSError):
                status = (self.folder / name).stat()
                return EntryUse(status.st_size if name == USES else 0, status.st_mtime)
        return EntryUse(0, 0.0)

    def count_use(self) -> None:
        """Count a use. Any number of processes may do so; a cache that cannot be written counts nothing."""
        with suppress(OSError):
            file = os.open(self.folder / USES, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.write(file, b".")
            finally:
                os.close(file)

    def listing(self, log: Log = print_warning) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the images' rows in their part of the store, and their labels: both (n,) int64.

        Raises:
            CorruptFileError, UnreadableEntryError: see `open`.
        """
        path = self.folder / IMAGES
        with self._opening(log):
            if self.folder.exists() and not path.exists():
                raise CorruptFileError(f"{path}: is missing")
            content = path.read_bytes()
            if xxhash.xxh3_128_hexdigest(content) != self.list_checksum:
                raise CorruptFileError(f"{path}: its checksum does not match its contents")
        rows, labels = np.load(io.BytesIO(content), allow_pickle=False).T
        return rows, labels

    def open(self, threads: int | None = None, log: Log = print_warning) -> ShardReader:
        """Open a reader of the records; whoever reads passes damage that shows later on to `quarantine`.

        Args:
            threads: that read, see `ShardReader`.

        Raises:
            CorruptFileError: a shard is damaged; the entry is quarantined.
            UnreadableEntryError: it cannot be read, or was removed.
        """
        paths = [shard_path(self.folder, i) for i in range(len(self.shards))]
        with self._opening(log):
            return ShardReader(paths, entry=self.folder.name, shape=self.shape, threads=threads)

    @contextmanager
    def reading(self, log: Log = print_warning) -> Iterator[ShardReader]:
        """Open a reader for a while; damage that shows meanwhile quarantines the entry. Raises what `open` does."""
        with self.open(log=log) as reader:
            try:
                yield reader
            except CorruptFileError as error:
                quarantine(self.folder, error, log, self.checksum)
                raise

    def verify(self, log: Log = print_warning) -> None:
        """Read everything back. Raises what `open` does."""
        self.listing(log)
        with self.reading(log) as reader:
            reader.verify()

    @contextmanager
    def _opening(self, log: Log) -> Iterator[None]:
        try:
            yield
        except CorruptFileError as error:
            quarantine(self.folder, error, log, self.checksum)
            raise
        except FileNotFoundError:
            raise UnreadableEntryError(
                f"{self.folder}: was removed from the cache before it was read: run the same command again"
            ) from None
        except OSError as error:
            raise unreadable_error(self.folder, error) from error


def shard_path(folder: Path, position: int) -> Path:
    """Return the path of an entry's shard."""
    return folder / f"{position:05}.shard"


def encode_manifest(facts: Mapping[str, Any]) -> bytes:
    """Return the contents of `entry.json`: `facts` and their checksum."""
    return json.dumps({**facts, "checksum": _checksum(facts)}, indent=1, sort_keys=True).encode() + b"\n"


def read_entry(folder: Path) -> CacheEntry:
    """Return the entry in `folder`, whole as far as its own files and their sizes tell; its records are not read.

    Raises:
        FileNotFoundError: there is none.
        CorruptFileError: it is not what was written.
        UnreadableEntryError: it cannot be read, or is of another version.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        if not folder.exists():
            raise FileNotFoundError(folder) from None
        raise CorruptFileError(f"{folder}: damaged: its {MANIFEST} is missing") from None
    except OSError as error:
        raise unreadable_error(folder, error) from error
    facts = _parse_manifest(path, text)
    try:
        key = CacheKey.of_facts(facts["key"])
        shards = tuple(FeatureShard(**shard) for shard in facts["shards"])
        info = EntryInfo(**{**facts["about"], "classes": tuple(facts["about"]["classes"])})
        images, packed, checksum = facts["images"], facts["packed"], facts["checksum"]
        entry = CacheEntry(key, folder, info, images, facts["listed"], shards, packed, checksum)
        is_complete = sum(shard.records for shard in shards) == entry.images * entry.views
        digest = key.digest()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: makes no sense ({error})") from None
    if digest != folder.name:
        raise CorruptFileError(f"{path}: is that of entry {digest}, which was moved to this place")
    if not is_complete:
        raise CorruptFileError(f"{path}: its shards do not hold {entry.images} images in {entry.views} views")
    for i, shard in enumerate(shards):
        _check_shard(shard_path(folder, i), shard)
    return entry


def _parse_manifest(path: Path, text: bytes) -> Mapping[str, Any]:
    """Return what `encode_manifest` got, and the checksum; it and the format have the same place in every version."""
    try:
        facts = json.loads(text)
        checksum, version = facts.pop("checksum"), facts["format"]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: damaged: it cannot be read ({error})") from None
    if checksum != _checksum(facts):
        raise CorruptFileError(f"{path}: its checksum does not match its contents")
    if version != FORMAT:
        is_newer = isinstance(version, int) and version > FORMAT
        raise UnreadableEntryError(
            f"{path}: written by {'a newer' if is_newer else 'an older'} fasttransfer (format {version}, this one "
            f"reads {FORMAT}): {'update fasttransfer or ' if is_newer else ''}remove the entry with fasttransfer "
            f"cache prune {path.parent.name}"
        )
    if text != encode_manifest(facts):
        raise CorruptFileError(f"{path}: damaged: it is not as it was written")
    return {**facts, "checksum": checksum}


def _checksum(facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return str(xxhash.xxh3_128_hexdigest(text.encode()))


def footer_checksum(path: Path) -> str:
    """Return the checksum that a shard ends with, which fits no other shard."""
    with path.open("rb") as file:
        file.seek(-min(_FOOTER_END, path.stat().st_size), os.SEEK_END)
        return file.read(8).hex()


def _check_shard(path: Path, shard: FeatureShard) -> None:
    try:
        size, checksum = path.stat().st_size, footer_checksum(path)
    except FileNotFoundError:
        if not path.parent.exists():
            raise
        raise CorruptFileError(f"{path}: is missing") from None
    except OSError as error:
        raise unreadable_error(path, error) from error
    if size != shard.bytes:
        raise CorruptFileError(f"{path}: has {size} bytes, {shard.bytes} were written")
    if checksum != shard.checksum:
        raise CorruptFileError(f"{path}: is not the shard that was written")


def find_in_folder(folder: Path, log: Log = print_warning) -> CacheEntry | None:
    """Return the entry in `folder`; None where there is none, or where it is damaged and now quarantined.

    The process that makes the entry must not call this: it would wait for its own lock.

    Raises:
        UnreadableEntryError: see `read_entry`.
    """
    try:
        return read_entry(folder)
    except FileNotFoundError:
        return None
    except CorruptFileError as error:
        return quarantine(folder, error, log)


def quarantine(
    folder: Path, error: CorruptFileError, log: Log = print_warning, checksum: str | None = None
) -> CacheEntry | None:
    """Quarantine the damaged entry in `folder` and log that; where the cache is not ours to write, the entry stays.

    If it was made again meanwhile, the new one stays and is returned.

    Args:
        checksum: that of an entry which proved damaged only when its records were read.
    """
    try:
        with hold_lock(lock_of(folder), lambda: None):  # whoever holds it may be making the entry again
            return find_locked(folder, log, error, checksum)
    except UnreadableEntryError:
        raise
    except InputError as refusal:
        log(f"{error}; it is not read, and left alone: {refusal}")
        return None


def find_locked(
    folder: Path, log: Log, error: CorruptFileError | None = None, checksum: str | None = None
) -> CacheEntry | None:
    """Return the entry in `folder` as `find_in_folder` does, for the process that holds its lock.

    Args:
        error, checksum: see `quarantine`.
    """
    try:
        entry = read_entry(folder)
    except FileNotFoundError:
        return None
    except CorruptFileError as now:
        error = now
    else:
        if entry.checksum != checksum:
            return entry
    target = folder.with_name(f"{folder.name}{DAMAGED}")
    with disk_errors(folder):
        remove_path(target)
        folder.rename(target)
        sync_folder(folder.parent)
    log(f"{error}; the entry is quarantined as {target.name} and not read")
    return None


def remove_path(path: Path) -> None:
    """Remove a folder with all that is in it, or a file, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unreadable_error(path: Path, error: OSError) -> UnreadableEntryError:
    """Return the error of a file that the system does not let us read."""
    reason = (error.strerror or str(error)).lower()
    return UnreadableEntryError(f"{path}: cannot be read ({reason}): see to its permissions, or set FASTTRANSFER_CACHE")
