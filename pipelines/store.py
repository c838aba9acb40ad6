"""The store: every image of a source, decoded once and resized, in files that need nothing of this project.

A folder with `manifest.json` and, for each part (train, val), `<part>-labels.npy` (int64) and shards. Rows are sorted
by label, then by the bytes of the image's path. There are two kinds:

* raw: `<part>-0000.npy`, `<part>-0001.npy` … (uint8, rows x size x size x 3, RGB).
* jpeg: `<part>-0000.tar` … in WebDataset's convention, members `00000123.jpg` and `00000123.cls` (row and label), and
  `<part>-index.npy` (int64, images x 2: offset and size of a JPEG in its shard), so that no tar is ever scanned.

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
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from fasttransfer.core.errors import InputError, os_reason
from fasttransfer.pipelines.decode import ImageError, Pixels, decode

FORMAT = 2
_CONTENT = 1  # enters the digest, by which studies on disk name their images; independent of FORMAT
_JPEG_SHARE = 0.16  # of the bytes of the pixels, at quality 95; 0.15 was measured on ILSVRC12 at 256 x 256
_TAR_BYTES = 1800  # headers, label and padding of an image in a tar
_PIECE = 4 << 20  # bytes read at a time
MANIFEST = "manifest.json"
PARTS = ("train", "val")
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # errors of a file that should be there
SUFFIX = {"raw": ".npy", "jpeg": ".tar"}

Kind = Literal["raw", "jpeg"]
Labels = NDArray[np.int64]
Rows = NDArray[np.integer[Any]]


class UnreadableStoreError(InputError):
    """A store that may be intact, but cannot be read now: no reason to make it again."""


@dataclass(frozen=True, eq=False)
class RawStorePart:
    """The training or the validation images of a raw store, as memory-mapped arrays."""

    labels: Labels  # (n,) indices into `Store.classes`
    shards: tuple[Pixels, ...]  # read-only; shard i holds rows from starts[i]
    starts: NDArray[np.int64]  # (shards,) first row of each
    size: int  # side of an image in pixels

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: Rows) -> Pixels:
        """Return the images of `rows` in that order; rows may repeat. Thread-safe.

        Args:
            rows: (k,) integers in [0, len(self)).

        Returns:
            (k, size, size, 3) uint8, a new array.

        Raises:
            IndexError: a row that the part does not have.
        """
        rows = _check_rows(rows, len(self))
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
    """The images of a jpeg store; its tar shards stay open as long as the object lives.

    Args:
        files: the shards.
        index: (n, 2) int64, offset and size of each JPEG in its shard.
        labels, starts, size: see `RawStorePart`.
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
        """Return the JPEG of a row in [0, len(self)). Thread-safe.

        Raises:
            IndexError: a row that the part does not have.
            OSError: it cannot be read.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside a part with {len(self)} images")
        shard = self._shard(row)
        offset, size = map(int, self.index[row])
        data = os.pread(self._handles[shard], size, offset)
        if len(data) != size:
            raise OSError(f"{self.files[shard]} ends too early")
        return data

    def gather(self, rows: Rows) -> Pixels:
        """Return the images of `rows`, see `RawStorePart.gather`; decodes them in the calling thread.

        Raises:
            InputError: names an image that cannot be read or decoded: disks rot after all was checked.
        """
        rows = _check_rows(rows, len(self))
        out = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        for place, row in enumerate(rows.tolist()):
            try:
                out[place] = decode(self.read(row), self.size)
            except OSError as error:
                raise self.damage(row, os_reason(error)) from error
            except ImageError as error:
                raise self.damage(row, str(error)) from error
        return out

    def damage(self, row: int, reason: str) -> InputError:
        """Return the error about an image that cannot be used."""
        file = self.files[self._shard(row)]
        return damaged_store_error(file.parent, f"{row:08d}.jpg in {file.name}: {reason}")

    def _shard(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1


StorePart = RawStorePart | JpegStorePart


@dataclass(frozen=True, eq=False)
class Store:
    """A prepared source; see the module for what is on disk."""

    folder: Path
    kind: Kind
    size: int
    classes: tuple[str, ...]
    words: dict[str, str]
    digest: str  # XXH3-128 of classes, size, labels and pixels or JPEGs: equal where training sees the same
    manifest: dict[str, Any]
    train: StorePart
    val: StorePart

    @property
    def parts(self) -> dict[str, StorePart]:
        """The images of "train" and "val"."""
        return {"train": self.train, "val": self.val}

    @property
    def labels(self) -> dict[str, Labels]:
        """The labels of the images of each part."""
        return {name: part.labels for name, part in self.parts.items()}

    @staticmethod
    def open(folder: Path) -> Store:
        """Open a store; check the manifest and the shape, type and length of each file, not the images.

        Raises:
            UnreadableStoreError: the system does not let us read it.
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
                if (size_on_disk := (folder / file).stat().st_size) != facts["bytes"]:
                    raise ValueError(f"{file} has {size_on_disk:,} bytes, not {facts['bytes']:,}")
            words, digest = dict(manifest["words"]), str(manifest["digest"])
            return Store(folder, kind, size, classes, words, digest, manifest, **parts)
        except OSError as error:
            raise _unreadable_error(folder, error) from error
        except (AttributeError, KeyError, TypeError, ValueError, EOFError) as error:
            reason = f"{MANIFEST} lacks {error}" if isinstance(error, KeyError) else str(error)
            raise damaged_store_error(folder, reason) from error

    def require_both_parts(self, classes: Iterable[str]) -> None:
        """Check that a study can use the classes: each needs images to train on and to validate on.

        Raises:
            InputError: names the first few classes that lack either.
        """
        counts = {part: np.bincount(self.labels[part], minlength=len(self.classes)).tolist() for part in PARTS}
        check_both_parts(self.manifest.get("source", self.folder), self.classes, counts, list(classes))


def check_both_parts(
    source: Path | str, classes: Sequence[str], counts: Mapping[str, Sequence[int]], wanted: Sequence[str]
) -> None:
    """Check that each of the `wanted` classes has images to train on and to validate on.

    Args:
        classes: all classes of the source; counts: part -> images of each of them.

    Raises:
        InputError: names the first few classes that lack either.
    """
    for part, what in (("train", "training"), ("val", "validation")):
        of_class = dict(zip(classes, counts[part], strict=True))
        if lacking := [name for name in wanted if not of_class[name]]:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise InputError(
                f"{source}: no {what} image of {', '.join(lacking[:3])}{more}: "
                "give each class at least two images or leave it out of the split"
            )


class Digest:
    """The digest of a store's contents, fed piece by piece, in order of parts and rows.

    The shards that rows lie in do not enter it. The images are one stream; what is known of a part only after its last
    image (labels, sizes of JPEGs) is another.
    """

    def __init__(self, classes: Sequence[str], size: int, kind: Kind) -> None:
        head = [_CONTENT, size, list(classes), *([] if kind == "raw" else [kind])]
        self._facts = xxhash.xxh3_128(json.dumps(head).encode())
        self._images = xxhash.xxh3_128()

    def facts(self, facts: NDArray[np.int64]) -> None:
        """Add (n,) int64 of one part: first the labels, then the sizes of its JPEGs in bytes."""
        self._facts.update(len(facts).to_bytes(8, "little"))
        self._facts.update(np.ascontiguousarray(facts, dtype="<i8").data)

    def images(self, data: bytes | memoryview) -> None:
        """Add the pixels or the JPEGs of one or more rows."""
        self._images.update(data)

    def hexdigest(self) -> str:
        """Return the digest of all that was added."""
        return xxhash.xxh3_128_hexdigest(self._facts.digest() + self._images.digest())


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: is not a prepared store (no {MANIFEST}): run prepare on the images") from None
    except OSError as error:
        raise _unreadable_error(folder, error) from error
    except ValueError as error:
        raise damaged_store_error(folder, f"{MANIFEST} cannot be read ({error})") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise InputError(f"{folder}: store format {version}, this version reads {FORMAT}: prepare the images again")
    assert isinstance(manifest, dict)
    return manifest


def _open_part(folder: Path, name: str, kind: Kind, facts: dict[str, Any], size: int, classes: int) -> StorePart:
    count, rows = int(facts["pictures"]), list(map(int, facts["shards"]))
    labels = _load(folder / f"{name}-labels.npy", "int64", (count,))
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{name}-labels.npy has labels outside 0 to {classes - 1}")
    if sum(rows) != count:
        raise ValueError(f"the {name} shards hold {sum(rows)} images, not {count}")
    starts = np.cumsum([0, *rows], dtype=np.int64)[:-1]
    files = [folder / shard_name(name, index, kind) for index in range(len(rows))]
    if kind == "raw":
        shards = (_load(file, "uint8", (n, size, size, 3), mmap=True) for file, n in zip(files, rows, strict=True))
        return RawStorePart(labels, tuple(map(np.asarray, shards)), starts, size)
    return JpegStorePart(labels, files, starts, _load(folder / f"{name}-index.npy", "int64", (count, 2)), size)


def _load(file: Path, dtype: str, shape: tuple[int, ...], mmap: bool = False) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r" if mmap else None, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy parses the header as Python, so that a damaged one raises nearly anything
        raise ValueError(f"{file.name} is no array ({' '.join(str(error).split())})") from error
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(f"{file.name} has {array.dtype} {array.shape}, not {dtype} {shape}")
    return array


def shard_name(part: str, index: int, kind: Kind = "raw") -> str:
    """Return the name of a part's shard."""
    return f"{part}-{index:04d}{SUFFIX[kind]}"


def expected_bytes(kind: Kind, images: int, size: int) -> int:
    """Return about how many bytes images with a side of `size` pixels take; exact for the pixels of a raw store."""
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
    """Return the XXH3-128 of a manifest without its own checksum."""
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest).encode())


def damaged_store_error(folder: Path, reason: str) -> InputError:
    """Return the error about a store that is damaged."""
    return InputError(f"{folder}: the store is damaged ({reason}): delete the folder and prepare the images again")


def is_store(folder: Path) -> bool:
    """Return whether a folder is a store, even a damaged one. A folder of images may have another manifest."""
    if not os.path.isfile(folder / MANIFEST):  # False too where the folder cannot be read
        return False
    try:
        return is_manifest((folder / MANIFEST).read_bytes())
    except OSError:
        return True


def is_manifest(data: bytes) -> bool:
    """Return whether the bytes of a `manifest.json` are those of a store, maybe damaged ones."""
    try:
        manifest = json.loads(data)
    except ValueError:
        return True
    return isinstance(manifest, dict) and "format" in manifest


def _unreadable_error(folder: Path, error: OSError) -> InputError:
    name, reason = Path(error.filename or MANIFEST).name, os_reason(error)
    if error.errno in _MISSING:
        return damaged_store_error(folder, f"{name}: {reason}")
    return UnreadableStoreError(f"{folder}: {name} cannot be read ({reason}): put that right")


def _check_rows(rows: Rows, count: int) -> NDArray[np.int64]:
    checked: NDArray[np.int64] = np.asarray(rows, dtype=np.int64)
    if len(checked) and (checked.min() < 0 or checked.max() >= count):
        raise IndexError(f"rows {checked.min()} to {checked.max()} are outside a part with {count} images")
    return checked


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files: each shard is one, and ImageNet has a thousand, which is the usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _close(handles: Iterable[int]) -> None:
    for handle in handles:
        os.close(handle)
