"""An entry of the feature cache on disk: a folder with `entry.json`, which says what it is, and shards.

`entry.json` has a checksum of itself and, of each shard, the one in its footer, which covers its index, which covers
its records. So a few bytes per shard tell whether an entry is whole and is the one that was written; that each record
is, a reader verifies. `images.npy`, (n, 2) int64, has the row in the store and the label of each image, for use
elsewhere. What is damaged is set aside as `<digest>.damaged`, never read.
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
"""A file that grows by a byte with every use: appending needs no lock, and its time is that of the last use."""

DAMAGED = ".damaged"
_END = 16  # bytes: a shard's last checksum, and the mark behind it


def print_warning(sentence: str) -> None:
    """Says something to the user, where nobody else has taken that on."""
    print(f"fasttransfer: {sentence}", file=sys.stderr)


class UnreadableEntryError(InputError):
    """An entry that may be whole, but cannot be read as things are."""


class OtherVersionError(UnreadableEntryError):
    """An entry that another version of this program made: not damaged, and not for this one to read or to replace."""


class RemovedError(UnreadableEntryError):
    """An entry that was removed after it was found."""


@dataclass(frozen=True)
class EntryInfo:
    """What an entry is, for people: nothing of it is part of the key.

    Attributes:
        network: e.g. "baseA.s0"; study: the folder that it was trained in.
        data: what the images are, as the study says; part: "train" or "val"; task: "A" or "B".
        classes: of the task, in the order of its labels.
    """

    network: str
    study: str
    data: str
    part: str
    task: str
    classes: tuple[str, ...]


class FeatureShard(NamedTuple):
    """What `entry.json` says of a shard; `checksum` is the one in its footer."""

    records: int
    bytes: int
    checksum: str


class EntryUse(NamedTuple):
    """How often an entry was used, and when last in seconds since 1970: when it was made, if never."""

    hits: int
    last: float


@dataclass(frozen=True)
class CacheEntry:
    """Features of `images` images in each of `views` views: record number = image * views + view.

    Attributes:
        listed: checksum of `images.npy`.
        packed: whether without the zeros.
        checksum: of `entry.json`, and by those in it of everything.
    """

    key: CacheKey
    folder: Path
    about: EntryInfo
    images: int
    listed: str
    shards: tuple[FeatureShard, ...]
    packed: bool
    checksum: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one record: (C, H, W) or (E,)."""
        return self.key.geometry.cut_shape(self.key.cut)

    @property
    def views(self) -> int:
        return len(self.key.views)

    @property
    def bytes(self) -> int:
        """What the shards take."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def dense(self) -> int:
        """Bytes of the same features as they are computed, in bfloat16."""
        return 2 * self.images * self.views * prod(self.shape)

    @property
    def use(self) -> EntryUse:
        """How much it was used, at this moment."""
        with suppress(OSError):
            status = (self.folder / USES).stat()
            return EntryUse(status.st_size, status.st_mtime)
        with suppress(OSError):
            return EntryUse(0, (self.folder / MANIFEST).stat().st_mtime)
        return EntryUse(0, 0.0)

    def listing(self, log: Log = print_warning) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The images' rows in their part of the store, and their labels: both (n,) int64.

        Raises:
            CorruptFileError, RemovedError, UnreadableError: as `open`.
        """
        path = self.folder / IMAGES
        with self._reading(log):
            if self.folder.exists() and not path.exists():
                raise CorruptFileError(f"{path}: is missing")
            content = path.read_bytes()
            if xxhash.xxh3_128_hexdigest(content) != self.listed:
                raise CorruptFileError(f"{path}: its checksum does not match its contents")
        rows, labels = np.load(io.BytesIO(content), allow_pickle=False).T
        return rows, labels

    def open(self, threads: int | None = None, log: Log = print_warning) -> ShardReader:
        """A reader of the records; `threads` as there. What its reading raises goes to `quarantine`.

        Raises:
            CorruptFileError: a shard is damaged; the entry has been set aside.
            RemovedError: the entry is there no longer.
            UnreadableError: it cannot be read.
        """
        paths = [shard_path(self.folder, i) for i in range(len(self.shards))]
        with self._reading(log):
            return ShardReader(paths, entry=self.folder.name, shape=self.shape, threads=threads)

    @contextmanager
    def reading(self, log: Log = print_warning) -> Iterator[ShardReader]:
        """Open a reader for a while; damage that shows meanwhile quarantines the entry.

        Raises:
            CorruptFileError, RemovedError, UnreadableEntryError: see `open`.
        """
        with self.open(log=log) as reader:
            try:
                yield reader
            except CorruptFileError as error:
                quarantine(self, error, log)
                raise

    @contextmanager
    def _reading(self, log: Log) -> Iterator[None]:
        try:
            yield
        except CorruptFileError as error:
            quarantine(self, error, log)
            raise
        except FileNotFoundError:
            raise RemovedError(
                f"{self.folder}: was removed from the cache before it was read: run the same command again"
            ) from None
        except OSError as error:
            raise unreadable_error(self.folder, error) from error


def shard_path(folder: Path, position: int) -> Path:
    return folder / f"{position:05}.shard"


# -- entry.json -----------------------------------------------------------------------------------------------------


def encode_manifest(said: Mapping[str, Any]) -> bytes:
    """The contents of `entry.json`: `said` and its checksum."""
    return json.dumps({**said, "checksum": _checksum(said)}, indent=1, sort_keys=True).encode() + b"\n"


def read_entry(folder: Path) -> CacheEntry:
    """The entry in `folder`, whole as far as its own files and their sizes tell; its records are not read.

    Raises:
        FileNotFoundError: there is none.
        CorruptFileError: it is not what was written.
        OtherVersionError, UnreadableError: it is of another version, or cannot be read.
    """
    if not folder.exists():
        raise FileNotFoundError(folder)
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        if not folder.exists():
            raise FileNotFoundError(folder) from None  # removed since
        raise CorruptFileError(f"{folder}: damaged: its {MANIFEST} is missing") from None
    except OSError as error:
        raise unreadable_error(folder, error) from error
    entry = _entry(folder, _parsed(path, text))
    for i, shard in enumerate(entry.shards):
        _check(shard_path(folder, i), shard)
    return entry


def find_entry(folder: Path, log: Log = print_warning) -> CacheEntry | None:
    """Read the entry as `read_entry` does, but quarantine a damaged one; not for the process that makes it.

    Raises:
        OtherVersionError, UnreadableError: as `read_entry`.
    """
    try:
        return read_entry(folder)
    except FileNotFoundError:
        return None
    except CorruptFileError as error:
        return quarantine_unless_whole(folder, error, log)


def _parsed(path: Path, text: bytes) -> Mapping[str, Any]:
    """Return what `encode_manifest` got. Where format and checksum stand is the same in every version."""
    try:
        said = json.loads(text)
        checksum, version = said.pop("checksum"), said["format"]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: damaged: it cannot be read ({error})") from None
    if checksum != _checksum(said):
        raise CorruptFileError(f"{path}: its checksum does not match its contents")
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        raise OtherVersionError(
            f"{path}: written by {'a newer' if newer else 'an older'} fasttransfer (format {version}, this one reads "
            f"{FORMAT}): {'update fasttransfer or ' if newer else ''}remove the entry with fasttransfer cache prune "
            f"{path.parent.name}"
        )
    if text != encode_manifest(said):
        raise CorruptFileError(f"{path}: damaged: it is not as it was written")
    return {**said, "checksum": checksum}


def _entry(folder: Path, said: Mapping[str, Any]) -> CacheEntry:
    path = folder / MANIFEST
    try:
        key = CacheKey.of_facts(said["key"])
        shards = tuple(FeatureShard(**facts) for facts in said["shards"])
        about = EntryInfo(**{**said["about"], "classes": tuple(said["about"]["classes"])})
        entry = CacheEntry(key, folder, about, said["images"], said["listed"], shards, said["packed"], said["checksum"])
        fits = sum(shard.records for shard in shards) == entry.images * entry.views
        digest = key.digest()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: makes no sense ({error})") from None
    if digest != folder.name:
        raise CorruptFileError(f"{path}: is that of entry {digest}, which was moved to this place")
    if not fits:
        raise CorruptFileError(f"{path}: its shards do not hold {entry.images} images in {entry.views} views")
    return entry


def _checksum(said: Mapping[str, Any]) -> str:
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return str(xxhash.xxh3_128_hexdigest(text.encode()))


# -- shards ---------------------------------------------------------------------------------------------------------


def footer_checksum(path: Path) -> str:
    """The checksum that a shard ends with, which fits no other shard."""
    with path.open("rb") as file:
        file.seek(-min(_END, path.stat().st_size), os.SEEK_END)
        return file.read(8).hex()


def _check(path: Path, shard: FeatureShard) -> None:
    try:
        bytes_, checksum = path.stat().st_size, footer_checksum(path)
    except FileNotFoundError:
        if not path.parent.exists():
            raise
        raise CorruptFileError(f"{path}: is missing") from None
    except OSError as error:
        raise unreadable_error(path, error) from error
    if bytes_ != shard.bytes:
        raise CorruptFileError(f"{path}: has {bytes_} bytes, {shard.bytes} were written")
    if checksum != shard.checksum:
        raise CorruptFileError(f"{path}: is not the shard that was written")


# -- damage ---------------------------------------------------------------------------------------------------------


def quarantine(entry: CacheEntry, why: CorruptFileError, log: Log = print_warning) -> None:
    """Moves an entry out of the way that proved damaged when its records were read, and says so.

    If it has been made again meanwhile, that one stays. Where the cache is not ours to write, the entry stays too.
    """
    quarantine_unless_whole(entry.folder, why, log, but=entry.checksum)


def quarantine_unless_whole(folder: Path, why: CorruptFileError, log: Log, but: str | None = None) -> CacheEntry | None:
    """Sets aside what is in `folder`, unless it is whole by now and its checksum is another than `but`.

    Returns:
        The entry that is there, if it is whole.

    Raises:
        OtherVersionError, UnreadableError: as `read_entry`.
    """
    try:
        with hold_lock(lock_of(folder), lambda: None):  # whoever holds it may be making the entry again
            try:
                now = read_entry(folder)
                if now.checksum != but:
                    return now
            except FileNotFoundError:
                return None
            except CorruptFileError as error:
                why = error
            quarantine_locked(folder, why, log)
    except UnreadableEntryError:
        raise
    except InputError as error:
        log(f"{why}; it is not read, and left alone: {error}")
    return None


def quarantine_locked(folder: Path, why: CorruptFileError, log: Log) -> None:
    """Sets aside what is in `folder`; for who holds its lock.

    Raises:
        InputError: the cache is not ours to write.
    """
    target = folder.with_name(f"{folder.name}{DAMAGED}")
    with disk_errors(folder):
        remove_path(target)
        folder.rename(target)
        sync_folder(folder.parent)
    log(f"{why}; the entry is set aside as {target.name} and not read")


def remove_path(path: Path) -> None:
    """Removes a folder with all that is in it, or a file, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unreadable_error(path: Path, error: OSError) -> UnreadableEntryError:
    """What to say of a file that the system does not let us read."""
    reason = (error.strerror or str(error)).lower()
    return UnreadableEntryError(f"{path}: cannot be read ({reason}): see to its permissions, or set FASTTRANSFER_CACHE")
