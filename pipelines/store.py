"""The store: every image of a source decoded once, resized, and kept in files that need nothing of this project.

A folder with `manifest.json` and, for each part (train, val), `<part>-labels.npy` (int64) and shards. Rows are sorted
by label, then by the bytes of the image's path. There are two kinds:

* raw: `<part>-0000.npy`, `<part>-0001.npy` … (uint8, rows x size x size x 3, RGB).
* jpeg: `<part>-0000.tar` … in WebDataset's convention, members `00000123.jpg` and `00000123.cls` (row and label), and
  `<part>-index.npy` (int64, images x 2: offset and size of a JPEG in its shard), so that no tar is ever searched.

A shard holds a fixed range of the part's list of images, less those that cannot be decoded: the manifest says how many
rows each has, which may be none. The manifest has the XXH3-128 of every other file; `fasttransfer data verify` reads
everything back.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.decode import decode_stored

FORMAT = 2
_CONTENT = 1  # enters the digest: studies on disk name their images by it, whatever becomes of the files' format
_JPEG_SHARE = 0.16  # of the bytes of the pixels, at quality 95; 0.15 was found on ILSVRC12 at 256 x 256
_TAR_BYTES = 1800  # headers, label and filling of an image in a tar
_PIECE = 4 << 20  # bytes read at a time
MANIFEST = "manifest.json"
PARTS = ("train", "val")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # of a file that should be there
SUFFIX = {"raw": ".npy", "jpeg": ".tar"}

Kind = Literal["raw", "jpeg"]
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Rows = NDArray[np.integer[Any]]


class UnreadableStoreError(InputError):
    """A store that may be whole, but cannot be read as things are: no reason to make it again."""


class StorePart(Protocol):
    """The training or the validation images of a store."""

    @property
    def labels(self) -> Labels:
        """(n,) indices into `Store.classes`."""

    @property
    def size(self) -> int:
        """Side of an image in pixels."""

    def __len__(self) -> int: ...

    def gather(self, rows: Rows) -> Pixels:
        """The images of `rows` in that order; rows may repeat. Thread-safe.

        Args:
            rows: (k,) integers in [0, len(self)).

        Returns:
            (k, size, size, 3) uint8, a fresh array.

        Raises:
            IndexError: a row that the part does not have.
        """


@dataclass(frozen=True, eq=False)
class RawStorePart:
    """A part as memory-mapped arrays, see `StorePart`."""

    labels: Labels
    shards: tuple[Pixels, ...]  # read-only; shard i holds rows from starts[i]
    starts: NDArray[np.int64]  # (shards,) first row of each shard
    size: int

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: Rows) -> Pixels:
        """See `StorePart.gather`."""
        rows = _checked(rows, len(self))
        out = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        for index in np.unique(shard):
            mine = np.flatnonzero(shard == index)
            inside = rows[mine] - self.starts[index]
            if len(mine) == len(rows):
                # "clip" writes straight into `out`, "raise" would copy; the bounds are checked above.
                np.take(self.shards[index], inside, axis=0, out=out, mode="clip")
            else:
                out[mine] = self.shards[index][inside]
        return out


class JpegStorePart:
    """A part as JPEGs in tar shards that stay open for as long as this lives, see `StorePart`.

    Args:
        labels: (n,) int64.
        files: the shards.
        starts: (shards,) int64, first row of each.
        index: (n, 2) int64, offset and size of each JPEG in its shard.
        size: side of an image in pixels.
    """

    def __init__(
        self, labels: Labels, files: Sequence[Path], starts: NDArray[np.int64], index: NDArray[np.int64], size: int
    ) -> None:
        self.labels, self.files, self.starts, self.index, self.size = labels, tuple(files), starts, index, size
        self._handles: list[int] = []
        weakref.finalize(self, _close, self._handles)
        for file in files:
            self._handles.append(os.open(file, os.O_RDONLY | os.O_CLOEXEC))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> bytes:
        """The JPEG of a row in [0, len(self)). Thread-safe.

        Raises:
            IndexError: a row that the part does not have.
            OSError: it cannot be read.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} asked of a part with {len(self)} images")
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        offset, size = map(int, self.index[row])
        data = os.pread(self._handles[shard], size, offset)
        if len(data) != size:
            raise OSError(f"{self.files[shard]} ends too early")
        return data

    def gather(self, rows: Rows) -> Pixels:
        """See `StorePart.gather`; decoded in the thread that calls.

        Raises:
            ImageError: a JPEG that is damaged.
        """
        return decode_stored([self.read(row) for row in _checked(rows, len(self)).tolist()], self.size)


@dataclass(frozen=True, eq=False)
class Store:
    """A prepared source; see the module for what is on disk."""

    folder: Path
    kind: Kind
    size: int
    classes: tuple[str, ...]
    words: dict[str, str]
    digest: str  # XXH3-128 of classes, size, labels and pixels or JPEGs: equal exactly when training sees the same
    manifest: dict[str, Any]
    train: StorePart
    val: StorePart

    @staticmethod
    def open(folder: Path) -> Store:
        """Opens a store; checks the manifest and each file's shape, type and length, not what the images show.

        Raises:
            UnreadableError: the system does not let us read it.
            InputError: no store, one of another version, or a damaged one.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        try:
            kind, size, classes = manifest["kind"], int(manifest["size"]), tuple(map(str, manifest["classes"]))
            if kind not in SUFFIX:
                raise ValueError(f"{MANIFEST} says kind {kind!r}")
            _allow_open_files(sum(len(manifest["parts"][name]["shards"]) for name in PARTS))
            parts = {
                name: _open_part(folder, name, kind, manifest["parts"][name], size, len(classes)) for name in PARTS
            }
            for file, facts in manifest["files"].items():
                if (found := (folder / file).stat().st_size) != facts["bytes"]:
                    raise ValueError(f"{file} has {found:,} bytes, not {facts['bytes']:,}")
            return Store(
                folder,
                kind,
                size,
                classes,
                dict(manifest["words"]),
                str(manifest["digest"]),
                manifest,
                parts["train"],
                parts["val"],
            )
        except OSError as error:
            raise _unread(folder, error) from error
        except (AttributeError, KeyError, TypeError, ValueError, EOFError) as error:
            reason = f"{MANIFEST} lacks {error}" if isinstance(error, KeyError) else str(error)
            raise damaged_store_error(folder, reason) from error

    def require_both_parts(self, classes: Iterable[str]) -> None:
        """Refuses classes that a study cannot use: each needs images to train on and to validate on.

        Raises:
            InputError: names the first few that lack either.
        """
        label = {name: index for index, name in enumerate(self.classes)}
        wanted = list(classes)
        source = self.manifest.get("source", self.folder)
        for name, what in (("train", "training"), ("val", "validation")):
            counts = np.bincount(getattr(self, name).labels, minlength=len(self.classes))
            lacking = [each for each in wanted if counts[label[each]] == 0]
            if lacking:
                more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
                raise InputError(
                    f"{source}: no {what} image of {', '.join(lacking[:3])}{more}: "
                    "give each class at least two images or leave it out of the split"
                )


class Digest:
    """The digest of a store's contents, fed piece by piece, in order of parts and rows.

    How rows are cut into shards does not enter it. What is known of a part only when its last image is decoded
    (labels, sizes of JPEGs) and the images themselves run in two streams.
    """

    def __init__(self, classes: Sequence[str], size: int, kind: Kind) -> None:
        head = [_CONTENT, size, list(classes), *([] if kind == "raw" else [kind])]
        self._facts = xxhash.xxh3_128(json.dumps(head).encode())
        self._images = xxhash.xxh3_128()

    def facts(self, facts: NDArray[np.int64]) -> None:
        """(n,) int64 of one part: first the labels, then of JPEGs their sizes in bytes."""
        self._facts.update(len(facts).to_bytes(8, "little"))
        self._facts.update(np.ascontiguousarray(facts, dtype="<i8").data)

    def images(self, data: bytes | memoryview) -> None:
        """The pixels or the JPEGs of one or more rows."""
        self._images.update(data)

    def hexdigest(self) -> str:
        return xxhash.xxh3_128_hexdigest(self._facts.digest() + self._images.digest())


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: is not a prepared store (no {MANIFEST}): run prepare on the images") from None
    except OSError as error:
        raise _unread(folder, error) from error
    except ValueError as error:
        raise damaged_store_error(folder, f"{MANIFEST} cannot be read ({error})") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise InputError(f"{folder}: store format {version}, this version reads {FORMAT}: prepare the images again")
    assert isinstance(manifest, dict)
    return manifest


def _open_part(folder: Path, name: str, kind: Kind, facts: dict[str, Any], size: int, classes: int) -> StorePart:
    count, rows = int(facts["pictures"]), list(map(int, facts["shards"]))
    labels = np.load(folder / f"{name}-labels.npy", allow_pickle=False)
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise ValueError(f"{name}-labels.npy has {labels.dtype} {labels.shape}, not int64 ({count},)")
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{name}-labels.npy has labels outside 0 to {classes - 1}")
    if sum(rows) != count:
        raise ValueError(f"the {name} shards hold {sum(rows)} images, not {count}")
    starts = np.cumsum([0, *rows], dtype=np.int64)[:-1]
    files = [folder / shard_name(name, index, kind) for index in range(len(rows))]
    if kind == "raw":
        shards = tuple(_open_shard(file, count, size) for file, count in zip(files, rows, strict=True))
        return RawStorePart(labels, shards, starts, size)
    index = np.load(folder / f"{name}-index.npy", allow_pickle=False)
    if index.dtype != np.int64 or index.shape != (count, 2):
        raise ValueError(f"{name}-index.npy has {index.dtype} {index.shape}, not int64 ({count}, 2)")
    return JpegStorePart(labels, files, starts, index, size)


def _open_shard(file: Path, rows: int, size: int) -> Pixels:
    shard = np.load(file, mmap_mode="r", allow_pickle=False)
    if shard.dtype != np.uint8 or shard.shape != (rows, size, size, 3) or not shard.flags.c_contiguous:
        raise ValueError(f"{file.name} has {shard.dtype} {shard.shape}, not uint8 {(rows, size, size, 3)}")
    return np.asarray(shard)


def shard_name(part: str, index: int, kind: Kind = "raw") -> str:
    """The file of a part's shard."""
    return f"{part}-{index:04d}{SUFFIX[kind]}"


def expected_bytes(kind: Kind, images: int, size: int) -> int:
    """About what so many images of a side of `size` pixels will take; of a raw store exactly."""
    pixels = size * size * 3
    return images * (pixels if kind == "raw" else int(pixels * _JPEG_SHARE) + _TAR_BYTES)


def file_facts(path: Path) -> dict[str, Any]:
    """Return what the manifest has of a file: its "bytes" and its "xxh3_128".

    Raises:
        OSError: the file cannot be read.
    """
    state, size = xxhash.xxh3_128(), 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            state.update(piece)
            size += len(piece)
    return {"bytes": size, "xxh3_128": state.hexdigest()}


def manifest_checksum(manifest: Mapping[str, Any]) -> str:
    """The XXH3-128 of a manifest without its own checksum."""
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest).encode())


def damaged_store_error(folder: Path, reason: str) -> InputError:
    """What to say of a store with something wrong in it."""
    return InputError(f"{folder}: the store is damaged ({reason}): delete the folder and prepare the images again")


def is_store(folder: Path) -> bool:
    """Whether a store is here, be it damaged. A folder of images may have somebody else's manifest."""
    if not os.path.isfile(folder / MANIFEST):  # False as well where nothing can be read
        return False
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return True
    return isinstance(manifest, dict) and "format" in manifest


def _unread(folder: Path, error: OSError) -> InputError:
    name, reason = Path(error.filename or MANIFEST).name, (error.strerror or str(error)).lower()
    if error.errno in _GONE:
        return damaged_store_error(folder, f"{name}: {reason}")
    return UnreadableStoreError(f"{folder}: {name} cannot be read ({reason}): put that right")


def _checked(rows: Rows, count: int) -> NDArray[np.int64]:
    checked: NDArray[np.int64] = np.asarray(rows, dtype=np.int64)
    if len(checked) and (checked.min() < 0 or checked.max() >= count):
        raise IndexError(f"rows {checked.min()} to {checked.max()} asked of a part with {count} images")
    return checked


def _allow_open_files(count: int) -> None:
    """Room for as many more open files: each shard is one, ImageNet has a thousand, and so many is the usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _close(handles: Iterable[int]) -> None:
    for handle in handles:
        os.close(handle)
