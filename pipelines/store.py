"""The raw store: every picture of a source decoded once, in NumPy files that need nothing of this project.

A folder with `manifest.json` and, for each part (train, val), `<part>-labels.npy` (int64) and shards
`<part>-0000.npy`, `<part>-0001.npy` … (uint8, rows x size x size x 3, RGB). All shards of a part but the
last have the same number of rows. Rows are sorted by label, then by the bytes of the picture's path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fasttransfer.errors import InputError

FORMAT = 1
MANIFEST = "manifest.json"
PARTS = ("train", "val")

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Part:
    """The training or the validation pictures of a store."""

    labels: Labels  # (n,) indices into Store.classes
    shards: tuple[Pixels, ...]  # memory-mapped, read-only; shard i holds rows from starts[i]
    starts: NDArray[np.int64]  # (shards,) first row of each shard
    size: int

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: NDArray[np.integer[Any]]) -> Pixels:
        """The pictures of `rows` in that order; rows may repeat.

        Args:
            rows: (k,) integers in [0, len(self)).

        Returns:
            (k, size, size, 3) uint8, a fresh array.

        Raises:
            IndexError: a row that the part does not have.
        """
        rows = np.asarray(rows, dtype=np.int64)
        out = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        if len(rows) == 0:
            return out
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} asked of a part with {len(self)} pictures")
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


@dataclass(frozen=True, eq=False)
class Store:
    """A prepared source; see the module for what is on disk."""

    folder: Path
    size: int
    classes: tuple[str, ...]
    words: dict[str, str]
    digest: str  # XXH3-128 of classes, size, labels and pixels: equal exactly when training sees the same
    manifest: dict[str, Any]
    train: Part
    val: Part

    @staticmethod
    def open(folder: Path) -> Store:
        """Opens a store; checks the manifest and each file's shape, type and length, not the pixels.

        Raises:
            InputError: no store, one of another version, or a damaged one.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        try:
            size, classes = int(manifest["size"]), tuple(map(str, manifest["classes"]))
            parts = {name: _open_part(folder, name, manifest["parts"][name], size, len(classes)) for name in PARTS}
            return Store(
                folder,
                size,
                classes,
                dict(manifest["words"]),
                str(manifest["digest"]),
                manifest,
                parts["train"],
                parts["val"],
            )
        except (KeyError, TypeError, ValueError, EOFError, OSError) as error:
            reason = f"{MANIFEST} lacks {error}" if isinstance(error, KeyError) else str(error)
            raise _damaged(folder, reason) from error

    def verify(self) -> None:
        """Reads everything and compares it with the digest in the manifest.

        Raises:
            InputError: a byte that training would see is not what was written.
        """
        found = digest_of(self.classes, self.size, {"train": self.train, "val": self.val})
        if found != self.digest:
            raise _damaged(self.folder, f"its contents have digest {found}, {MANIFEST} says {self.digest}")

    def need_both_parts(self, classes: Iterable[str]) -> None:
        """Refuses classes that a study cannot use: each needs pictures to train on and to validate on.

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
                    f"{source}: no {what} picture of {', '.join(lacking[:3])}{more}: "
                    "give each class at least two pictures or leave it out of the split"
                )


def digest_of(classes: Sequence[str], size: int, parts: dict[str, Part]) -> str:
    """The digest of a store's contents. How rows are cut into shards does not enter it."""
    state = Digest(classes, size)
    for name in PARTS:
        state.labels(parts[name].labels)
        for shard in parts[name].shards:
            state.pixels(shard)
    return state.hexdigest()


class Digest:
    """`digest_of`, fed piece by piece: for each part first its labels, then its pixels in order of rows.

    Labels and pixels run in two streams, because labels are complete only when the last picture is decoded.
    """

    def __init__(self, classes: Sequence[str], size: int) -> None:
        self._labels = xxhash.xxh3_128(json.dumps([FORMAT, size, list(classes)]).encode())
        self._pixels = xxhash.xxh3_128()

    def labels(self, labels: Labels) -> None:
        """(n,) int64 of one part."""
        self._labels.update(len(labels).to_bytes(8, "little"))
        self._labels.update(np.ascontiguousarray(labels, dtype="<i8").data)

    def pixels(self, pixels: Pixels) -> None:
        """(rows, size, size, 3) uint8."""
        self._pixels.update(np.ascontiguousarray(pixels).data)

    def hexdigest(self) -> str:
        return xxhash.xxh3_128_hexdigest(self._labels.digest() + self._pixels.digest())


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: is not a prepared store (no {MANIFEST}): run prepare on the pictures") from None
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be read ({error})") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise InputError(f"{folder}: store format {version}, this version reads {FORMAT}: prepare the pictures again")
    assert isinstance(manifest, dict)
    return manifest


def _open_part(folder: Path, name: str, facts: dict[str, Any], size: int, classes: int) -> Part:
    count = int(facts["pictures"])
    labels = np.load(folder / f"{name}-labels.npy", allow_pickle=False)
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise ValueError(f"{name}-labels.npy has {labels.dtype} {labels.shape}, not int64 ({count},)")
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{name}-labels.npy has labels outside 0 to {classes - 1}")
    shards = tuple(_open_shards(folder, name, facts["shards"], size))
    starts = np.cumsum([0, *map(len, shards)], dtype=np.int64)
    if starts[-1] != count:
        raise ValueError(f"the {name} shards hold {starts[-1]} pictures, not {count}")
    return Part(labels, shards, starts[:-1], size)


def _open_shards(folder: Path, name: str, rows: Sequence[int], size: int) -> Iterator[Pixels]:
    for index, count in enumerate(rows):
        file = shard_name(name, index)
        shard = np.load(folder / file, mmap_mode="r", allow_pickle=False)
        if shard.dtype != np.uint8 or shard.shape != (count, size, size, 3) or not shard.flags.c_contiguous:
            raise ValueError(f"{file} has {shard.dtype} {shard.shape}, not uint8 {(count, size, size, 3)}")
        yield np.asarray(shard)


def shard_name(part: str, index: int) -> str:
    """The file of a part's shard."""
    return f"{part}-{index:04d}.npy"


def _damaged(folder: Path, reason: str) -> InputError:
    return InputError(f"{folder}: the store is damaged ({reason}): delete the folder, it is made again when asked for")
