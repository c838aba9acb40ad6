"""Filling the folder of a store: decode, resize, write, and go on where a killed process stopped.

The files of a store are a function of the images, of the choices and of the libraries that decode; not of what ran
when, or of how often it was stopped.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import replace_file, sync_folder
from fasttransfer.core.progress import Log  # fmt: skip
from fasttransfer.core.progress import format_bytes as in_words
from fasttransfer.pipelines import journal
from fasttransfer.pipelines.decode import ImageError
from fasttransfer.pipelines.decoders import Decoder, decoder_for
from fasttransfer.pipelines.journal import JOURNAL, Head, Journal, JournalEntry
from fasttransfer.pipelines.layouts import ImageFile, Listing
from fasttransfer.pipelines.ordered_map import map_in_order
from fasttransfer.pipelines.progress_log import ProgressLog
from fasttransfer.pipelines.shard_writer import Flusher, ImageShard, PartWriter, flusher, jpeg_index, read_back
from fasttransfer.pipelines.store import (
    FORMAT,
    MANIFEST,
    PARTS,
    Digest,
    Kind,
    Pixels,
    expected_bytes,
    manifest_checksum,
    shard_name,
)

JPEG_QUALITY = 95

_KEYS = 1  # enters keys; raw stores keep theirs, so that one of an older format is found and replaced
_AHEAD_BYTES = 256 << 20  # of pixels that wait to be written
_LINES = 1000  # about images, digested at a time
_FEW = 5  # bad images named in a message


class SourceError(InputError):
    """The images cannot become the store that was asked for, however often it is tried."""


class RefusedImage(NamedTuple):
    """An image that cannot be decoded."""

    path: str
    reason: str


@dataclass(frozen=True)
class StoreRequest:
    """What to make of which images, see `fasttransfer.pipelines.prepare.prepare`."""

    listing: Listing
    size: int
    kind: Kind
    fit: str
    bad_images: str
    device: str
    synthetic: bool

    @property
    def images(self) -> int:
        """Of both parts."""
        return len(self.listing.train) + len(self.listing.val)

    @property
    def key(self) -> str:
        """A digest of what determines the store, found without opening a single image."""
        return self._digests[0]

    @property
    def file_list(self) -> str:
        """A digest of the parts, labels, paths, sizes and times of the images."""
        return self._digests[1]

    @cached_property
    def head(self) -> Head:
        """What work on this store must agree on to be gone on with."""
        source = self.listing.source.resolve()
        return {
            "key": self.key,
            "source": str(source),
            "choices": [self.size, self.kind, self.fit, self.bad_images],
            "archive": _stamp(source),
            "device": self.device,
            "versions": self.versions,
        }

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of what has a say in what the store holds."""
        names = ["fasttransfer", "numpy", "pillow", "torch", "torchvision"]
        found = {"python": platform.python_version()} | {name: version(name) for name in names}
        if self.device == "cuda":
            for name in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
                try:
                    found[name] = version(name)
                except PackageNotFoundError:
                    continue
        return found

    @property
    def named(self) -> bytes:
        """What of the key comes before the images."""
        listing, words = self.listing, sorted(self.listing.words.items())
        head: list[Any] = [_KEYS, self.size, self.bad_images, str(listing.source.resolve()), listing.layout]
        head += [listing.classes, words]
        if (self.kind, self.fit) != ("raw", "stretch"):
            head += [self.kind, self.fit]
        return json.dumps(head).encode()

    @cached_property
    def _digests(self) -> list[str]:
        return request_digests(self.listing, [self.named, b""])


def request_digests(listing: Listing, heads: Sequence[bytes]) -> list[str]:
    """Of each head and, behind it, the parts, labels, paths, sizes and times of the images, in one pass over them."""
    states = [xxhash.xxh3_128(head) for head in heads]
    for part in PARTS:
        images: tuple[ImageFile, ...] = getattr(listing, part)
        for start in range(0, len(images), _LINES):
            lines = []
            for image in images[start : start + _LINES]:
                file = listing.tree.images[image.path]
                lines.append(f"{part}\0{image.label}\0{image.path}\0{file.size}\0{file.mtime_ns}\n")
            some = os.fsencode("".join(lines))
            for state in states:
                state.update(some)
    return [state.hexdigest() for state in states]


def write_store(folder: Path, job: StoreRequest, log: Log) -> None:
    """Fills `folder`, which is empty or what a killed call left: shards that are as they were written are kept.

    Raises:
        ImagesError: bad images, or images that changed meanwhile.
        InputError: no room on the disk.
        OSError: the disk.
    """
    try:
        digest, entries = _resumed(folder, job, log)
        _announce(folder, job, entries, log)
        with warnings.catch_warnings():
            # Pillow warns of odd notes in files that decode well. Here, not in the threads: filters are global.
            warnings.simplefilter("ignore")
            _fill(folder, job, digest, entries, log)
    except SourceError:
        (folder / JOURNAL).unlink(missing_ok=True)  # nothing to go on with
        raise


def describe_refused(refused: Sequence[RefusedImage]) -> str:
    """How many images cannot be decoded, and the first of them."""
    some = "; ".join(f"{path} ({reason})" for path, reason in refused[:_FEW])
    more = f"; and {len(refused) - _FEW:,} more" if len(refused) > _FEW else ""
    return f"{len(refused):,} image{'' if len(refused) == 1 else 's'} cannot be decoded: {some}{more}"


# -- what is there already ------------------------------------------------------------------------------------------


def _resumed(folder: Path, job: StoreRequest, log: Log) -> tuple[Digest, list[JournalEntry]]:
    """The shards of an earlier call that can be trusted, and the digest after them; removes all else."""
    digest, trusted = Digest(job.listing.classes, job.size, job.kind), list[JournalEntry]()
    head, entries = journal.read_journal(folder)
    kept = {JOURNAL}
    if head == job.head and any(entry.shard for entry in entries):
        total = sum(entry.shard.rows for entry in entries if entry.shard)
        log(f"prepare: {total:,} images are there from an earlier run, which was stopped: checking them")
        eta = ProgressLog("prepare: checking", total, log)
        for entry, file in zip(entries, _files_of(entries, job.kind), strict=True):
            if entry.shard:
                ahead = digest.copy()
                if not read_back(folder / file, job.kind, entry.shard, ahead):
                    log(f"prepare: {file} is not what was written: made again, with what follows")
                    break
                digest = ahead
                kept.add(file)
                eta.step(entry.shard.rows)
            trusted.append(entry)
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    return digest, trusted


def _files_of(entries: Sequence[JournalEntry], kind: Kind) -> Iterator[str]:
    """The file of each entry's shard; only the last entry of a part may have none."""
    for part in PARTS:
        mine = [entry for entry in entries if entry.part == part]
        yield from (shard_name(part, index, kind) for index in range(len(mine)))


def _announce(folder: Path, job: StoreRequest, entries: Sequence[JournalEntry], log: Log) -> None:
    listing = job.listing
    for note in listing.notes:
        log(f"prepare: {listing.source}: {note}")
    about = "about " if job.kind == "jpeg" else ""
    there = sum(entry.shard.bytes for entry in entries if entry.shard)
    need, free = expected_bytes(job.kind, job.images, job.size), shutil.disk_usage(folder).free
    log(
        f"prepare: {len(listing.train):,} training and {len(listing.val):,} validation images of "
        f"{len(listing.classes):,} classes at {job.size} x {job.size} into {folder.parent}: {about}{in_words(need)}"
        + (f", of which {in_words(there)} are there" if there else "")
    )
    if need - there > free:
        raise InputError(
            f"{folder.parent}: the store takes {about}{in_words(need - there)}, the disk has {in_words(free)} free: "
            "free space or choose another folder"
        )


# -- filling --------------------------------------------------------------------------------------------------------


class _Made(NamedTuple):
    """A part that is complete."""

    labels: NDArray[np.int64]
    shards: list[ImageShard]
    refused: list[RefusedImage]


def _fill(folder: Path, job: StoreRequest, digest: Digest, entries: Sequence[JournalEntry], log: Log) -> None:
    before = job.head["archive"]
    eta = ProgressLog("prepare", job.images, log, done=_looked_at(entries))
    parts: dict[str, _Made] = {}
    decoder = decoder_for(job.device, job.size, job.fit)
    # The journal is closed last: the flusher writes into it until it is done.
    with closing(Journal(folder, job.head, entries)) as book, flusher() as disk:
        for part in PARTS:
            mine = [entry for entry in entries if entry.part == part]
            bad = any(made.refused for made in parts.values())
            parts[part] = _fill_part(folder, job, part, mine, decoder, digest, book, disk, eta, bad)
    if _stamp(job.listing.source) != before:
        raise _changed(job.listing, "it")
    refused = [each for part in PARTS for each in parts[part].refused]
    if refused and job.bad_images == "fail":
        told_all = f"{job.listing.source}: {describe_refused(refused)}"
        raise SourceError(f"{told_all}: repair or remove, or leave out with --bad-images skip")
    if refused:
        _refuse_emptied(job.listing, parts, refused)
        log(f"prepare: {describe_refused(refused)}: left out, listed in {MANIFEST}")
    files: Files = {}
    for part in PARTS:
        files |= _finish_part(folder, job.kind, part, parts[part], digest)
    _write_manifest(folder, job, parts, files, digest.hexdigest(), refused)
    (folder / JOURNAL).unlink()
    sync_folder(folder)
    eta.finish()


def _looked_at(entries: Sequence[JournalEntry]) -> int:
    return sum(max((entry.looked_at for entry in entries if entry.part == part), default=0) for part in PARTS)


def _fill_part(
    folder: Path,
    job: StoreRequest,
    part: str,
    entries: Sequence[JournalEntry],
    decoder: Decoder,
    digest: Digest,
    book: Journal,
    disk: Flusher,
    eta: ProgressLog,
    bad: bool,
) -> _Made:
    """Goes on with a part after `entries`; `bad`: there were bad images in an earlier one."""
    images: tuple[ImageFile, ...] = getattr(job.listing, part)
    first = entries[-1].looked_at if entries else 0
    refused = [RefusedImage(*each) for entry in entries for each in entry.refused]
    left_out = {each.path for each in refused}
    labels = [image.label for image in islice(images, first) if image.path not in left_out]
    shards = [entry.shard for entry in entries if entry.shard]
    entered = len(refused)

    def doomed() -> bool:
        """All that is written is thrown away: the rest is only checked."""
        return (bad or bool(refused)) and job.bad_images == "fail"

    def cut(looked_at: int) -> None:
        nonlocal entered
        since, entered = [(each.path, each.reason) for each in refused[entered:]], len(refused)

        def complete(shard: ImageShard | None) -> None:
            if shard:
                shards.append(shard)
            book.add(JournalEntry(part, looked_at, since, shard))

        writer.cut(complete)

    writer = PartWriter(
        folder, part, job.kind, first=len(shards), row=len(labels), most=len(images) - len(labels), size=job.size,
        digest=digest, flusher=disk,
    )  # fmt: skip
    with closing(writer), closing(_decoded(job, images[first:], decoder)) as outcomes:
        for looked_at, (image, outcome) in enumerate(outcomes, first + 1):
            eta.step()
            if isinstance(outcome, RefusedImage):
                refused.append(outcome)
                continue
            if doomed():
                continue
            labels.append(image.label)
            if writer.add(outcome, image.label):
                cut(looked_at)
        if first < len(images) and not doomed():
            cut(len(images))
    disk.wait()
    return _Made(np.asarray(labels, dtype=np.int64), shards, refused)


def _decoded(
    job: StoreRequest, images: Sequence[ImageFile], decoder: Decoder
) -> Generator[tuple[ImageFile, Pixels | bytes | RefusedImage], None, None]:
    """Each image in order with its pixels, its JPEG or why it has neither; a few tasks are decoded ahead."""

    def work(some: Sequence[ImageFile]) -> list[Pixels | bytes | RefusedImage]:
        read = [_read(job.listing, image) for image in some]
        pixels = iter(decoder([data for data in read if isinstance(data, bytes)]))
        outcomes: list[Pixels | bytes | RefusedImage] = []
        for image, data in zip(some, read, strict=True):
            found = data if isinstance(data, RefusedImage) else next(pixels)
            if isinstance(found, RefusedImage):
                outcomes.append(found)
            elif isinstance(found, ImageError):
                outcomes.append(RefusedImage(image.path, str(found)))
            else:
                outcomes.append(np.ascontiguousarray(found) if job.kind == "raw" else _jpeg(found))
        return outcomes

    each = min(decoder.images, max(1, _AHEAD_BYTES // (job.size * job.size * 3) // (2 * decoder.threads)))
    tasks = (images[start : start + each] for start in range(0, len(images), each))
    with closing(map_in_order(work, tasks, decoder.threads)) as done:
        for some, outcomes in done:
            yield from zip(some, outcomes, strict=True)


def _read(listing: Listing, image: ImageFile) -> bytes | RefusedImage:
    try:
        data = listing.read(image)
    except OSError as error:
        return RefusedImage(image.path, f"cannot be read: {(error.strerror or str(error)).lower()}")
    listed = listing.tree.images[image.path]
    if len(data) != listed.size:
        raise _changed(listing, image.path)
    # Of an archive's members only the size is known to be as it was; the archive itself is looked at in the end.
    with suppress(FileNotFoundError, NotADirectoryError):
        if os.stat(f"{listing.source}/{image.path}").st_mtime_ns != listed.mtime_ns:
            raise _changed(listing, image.path)
    return data


def _changed(listing: Listing, what: str) -> SourceError:
    return SourceError(f"{listing.source}: {what} changed while it was prepared: run it again when nobody writes there")


def _stamp(source: Path) -> list[int] | None:
    """The size and time of an archive; None for a folder, whose files have their own."""
    if source.is_dir():
        return None
    found = source.stat()
    return [found.st_size, found.st_mtime_ns]


def _jpeg(pixels: Pixels) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "JPEG", quality=JPEG_QUALITY)
    return memory.getvalue()


def _refuse_emptied(listing: Listing, parts: Mapping[str, _Made], refused: Sequence[RefusedImage]) -> None:
    """Leaving bad images out must not leave a class out."""
    for part in PARTS:
        had = np.bincount([each.label for each in getattr(listing, part)], minlength=len(listing.classes))
        has = np.bincount(parts[part].labels, minlength=len(listing.classes))
        for label in np.flatnonzero((had > 0) & (has == 0)):
            what = {"train": "training", "val": "validation"}[part]
            raise SourceError(
                f"{listing.source}: class {listing.classes[label]} has no {what} image left when those "
                f"that cannot be decoded are left out ({describe_refused(refused)}): repair some or remove the class"
            )


# -- what is written last -------------------------------------------------------------------------------------------

Files = dict[str, dict[str, Any]]


def _finish_part(folder: Path, kind: Kind, part: str, made: _Made, digest: Digest) -> Files:
    """Writes the small files of a part; returns size and checksum of all its files."""
    files: Files = {}
    digest.facts(made.labels)
    arrays = {f"{part}-labels.npy": made.labels}
    if kind == "jpeg":
        index = jpeg_index([shard.sizes for shard in made.shards])
        digest.facts(index[:, 1])
        arrays[f"{part}-index.npy"] = index
    for name, array in arrays.items():
        memory = io.BytesIO()
        np.save(memory, array, allow_pickle=False)
        with replace_file(folder / name) as file:
            file.write(memory.getbuffer())
        files[name] = _facts(len(memory.getbuffer()), xxhash.xxh3_128_hexdigest(memory.getbuffer()))
    for number, shard in enumerate(made.shards):
        files[shard_name(part, number, kind)] = _facts(shard.bytes, shard.checksum)
    return files


def _facts(size: int, checksum: str) -> dict[str, Any]:
    return {"bytes": size, "xxh3_128": checksum}


def _write_manifest(
    folder: Path,
    job: StoreRequest,
    parts: Mapping[str, _Made],
    files: Files,
    digest: str,
    refused: Sequence[RefusedImage],
) -> None:
    listing = job.listing
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "kind": job.kind,
        "digest": digest,
        "key": job.key,
        "size": job.size,
        "fit": job.fit,
        **({"quality": JPEG_QUALITY} if job.kind == "jpeg" else {}),
        "device": job.device,
        "layout": listing.layout,
        "source": str(listing.source.resolve()),
        "file_list": job.file_list,
        "synthetic": job.synthetic,
        "held_out": listing.held_out,
        "notes": listing.notes,
        "parts": {
            part: {
                "pictures": len(made.labels),
                "shards": [shard.rows for shard in made.shards],
                "per_class": np.bincount(made.labels, minlength=len(listing.classes)).tolist(),
            }
            for part, made in parts.items()
        },
        "bad_pictures": job.bad_images,
        "refused": [each._asdict() for each in refused],
        "versions": job.versions,
        "classes": listing.classes,
        "words": listing.words,
        "files": files,
    }
    manifest["checksum"] = manifest_checksum(manifest)
    with replace_file(folder / MANIFEST, "wb") as file:
        file.write(json.dumps(manifest, indent=1).encode())
