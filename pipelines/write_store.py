"""Fill the folder of a store: decode, resize, write, and resume where an earlier process stopped.

The files of a store are a function of the images, of the choices and of the libraries that decode; never of what ran
when, or how often it was interrupted.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError, os_reason
from fasttransfer.core.files import replace_file, sync_folder
from fasttransfer.core.progress import Log, ProgressLog, format_bytes
from fasttransfer.pipelines.decode import ImageError, Pixels, decode_or_error
from fasttransfer.pipelines.layouts import ImageFile, Listing
from fasttransfer.pipelines.ordered_map import map_in_order
from fasttransfer.pipelines.shard_writer import (
    DONE,
    RefusedImage,
    ShardRange,
    ShardRecord,
    complete_shard,
    jpeg_index,
    plan_shards,
    read_back,
    read_record,
    read_sealed,
    write_images,
    write_sealed,
)
from fasttransfer.pipelines.store import (
    FORMAT,
    MANIFEST,
    PARTS,
    Digest,
    expected_bytes,
    file_facts,
    manifest_checksum,
)
from fasttransfer.pipelines.store_request import StoreRequest, archive_stamp

JPEG_QUALITY = 95
REQUEST = "request"  # the file that says what an unfinished folder is for

_CPU_IMAGES = 16  # that a thread decodes at a time
_AHEAD_BYTES = 256 << 20  # of decoded pixels that wait to be written
_NAMED_IMAGES = 5  # bad images named in a message

Outcome = Pixels | bytes | RefusedImage
# Decodes files; the function gets the place and a sentence about each that may be damaged.
Decoder = Callable[[Sequence[bytes], Callable[[int, str], None]], list[Pixels | ImageError]]


class SourceError(InputError):
    """Images that cannot become the requested store, however often it is tried."""


def write_store(folder: Path, request: StoreRequest, bad_list: Path, log: Log) -> None:
    """Fill `folder`, which is empty or what an interrupted call left: shards that are still intact are kept.

    Args:
        bad_list: the file that gets the images that stop the call, or those that may be damaged where none does, if
            they are too many for a message: a line "<path> tab <reason>" for each.

    Raises:
        SourceError: bad images, or images that changed meanwhile.
        InputError: no room on the disk.
        OSError: the disk fails.
    """
    writer = _StoreWriter(folder, request, bad_list, log)
    try:
        writer.keep_complete_shards()
        writer.announce()
        write_sealed(folder / REQUEST, request.identity)
        with warnings.catch_warnings():
            # Pillow warns of odd notes in files that decode well. Here, not in the threads: filters are global.
            warnings.simplefilter("ignore")
            progress = writer.make_shards()
        writer.finish()
        progress.finish()
    except SourceError:
        (folder / REQUEST).unlink(missing_ok=True)  # there is nothing to resume
        raise


def read_unfinished(folder: Path) -> dict[str, Any] | None:
    """Return the `identity` of the request that `folder` was being filled for; None where no shard is complete."""
    identity: dict[str, Any] | None = read_sealed(folder / REQUEST)
    return identity if identity and any(folder.glob(f"*{DONE}")) else None


def describe_refused(refused: Sequence[RefusedImage], what: str = "cannot be decoded") -> str:
    """Return a sentence with the number of images that cannot be decoded and the first of them."""
    some = "; ".join(f"{path} ({reason})" for path, reason in refused[:_NAMED_IMAGES])
    more = f"; and {len(refused) - _NAMED_IMAGES:,} more" if len(refused) > _NAMED_IMAGES else ""
    return f"{len(refused):,} image{'' if len(refused) == 1 else 's'} {what}: {some}{more}"


class _StoreWriter:
    """The shards of a store that are planned and those that are complete, by their records, in order."""

    def __init__(self, folder: Path, request: StoreRequest, bad_list: Path, log: Log) -> None:
        self._folder, self._request, self._bad_list, self._log = folder, request, bad_list, log
        self._plan = plan_shards(request.listing, request.kind, request.size)
        self._digest = Digest(request.listing.classes, request.size, request.kind)
        self._records: list[ShardRecord] = []
        self._suspicious: list[RefusedImage] = []  # decoded in this process, but maybe damaged

    def keep_complete_shards(self) -> None:
        """Feed the leading shards that are intact to the digest; remove all other files.

        The shards after a damaged one are made again too: the digest is one of all images in order, and row numbers in
        a tar depend on the images that were refused before it.
        """
        recorded: list[ShardRecord] = []
        if read_sealed(self._folder / REQUEST) == self._request.identity:
            for shard in self._plan:
                if (record := read_record(self._folder / shard.file)) is None:
                    break
                recorded.append(record)
        if recorded:
            total = sum(record.rows for record in recorded)
            self._log(f"prepare: {total:,} images are there from an interrupted run: checking them")
        progress = ProgressLog("prepare: checking", _count_images(self._plan[: len(recorded)]), self._log)
        for shard, record in zip(self._plan, recorded, strict=False):
            if not read_back(self._folder / shard.file, self._request.kind, record, self._digest):
                self._log(f"prepare: {shard.file} is not what was written: it and all that follows is made again")
                break
            self._records.append(record)
            progress.step(len(shard.images))
        kept = {shard.file + suffix for shard in self._plan[: len(self._records)] for suffix in ("", DONE)}
        for path in self._folder.iterdir():
            if path.name not in kept and path.name != REQUEST:
                path.unlink()

    def announce(self) -> None:
        """Log what the store will take.

        Raises:
            InputError: the disk has less room.
        """
        request, listing, folder = self._request, self._request.listing, self._folder.parent
        about = "about " if request.kind == "jpeg" else ""
        present = sum(record.bytes for record in self._records)
        need, free = expected_bytes(request.kind, request.images, request.size), shutil.disk_usage(self._folder).free
        self._log(
            f"prepare: {len(listing.train):,} training and {len(listing.val):,} validation images of "
            f"{len(listing.classes):,} classes at {request.size} x {request.size} into {folder}: "
            f"{about}{format_bytes(need)}" + (f", of which {format_bytes(present)} are there" if present else "")
        )
        if need - present > free:
            raise InputError(
                f"{folder}: the store takes {about}{format_bytes(need - present)}, the disk has "
                f"{format_bytes(free)} free: free space or choose another folder"
            )

    def make_shards(self) -> ProgressLog:
        """Make the shards that lack, and return their progress. A thread flushes one while the next is made.

        Raises:
            SourceError: bad images unless they are to be skipped, or images that changed meanwhile.
        """
        request, listing, todo = self._request, self._request.listing, self._plan[len(self._records) :]
        rows = Counter[str]()
        for shard, record in zip(self._plan, self._records, strict=False):
            rows[shard.part] += record.rows
        refused: list[RefusedImage] = []
        flush: Future[ShardRecord] | None = None
        progress = ProgressLog("prepare", request.images, self._log, request.images - _count_images(todo))
        images = [image for shard in todo for image in shard.images]
        decoded = _decoded(request, images, self._suspicious, progress)
        with ThreadPoolExecutor(1, thread_name_prefix="flush") as disk, closing(decoded):
            for shard in todo:
                bad: list[RefusedImage] = []
                good = _sort_out(islice(decoded, len(shard.images)), bad)
                path, row = self._folder / shard.file, rows[shard.part]
                with open(path, "wb") as file:
                    sizes = write_images(file, request.kind, good, size=request.size, row=row, digest=self._digest)
                if bad and request.bad_images == "fail":  # there will be no store: only check the rest
                    refused = bad + [outcome for _, outcome in decoded if isinstance(outcome, RefusedImage)]
                    break
                if flush is not None:
                    self._records.append(flush.result())  # so that at most one shard waits for the disk
                flush = disk.submit(complete_shard, path, request.kind, sizes, bad)
                rows[shard.part] += len(sizes)
            if flush is not None:
                self._records.append(flush.result())
        if archive_stamp(listing.source) != request.identity["archive"]:
            raise _changed(listing, "it")
        if refused:
            every = f"{listing.source}: {describe_refused(refused)}{self._list_all(refused)}"
            raise SourceError(f"{every}: repair or remove them, or leave them out with --bad-images skip")
        suspicious = sorted(self._suspicious)
        listed = self._list_all(suspicious)
        if suspicious:
            self._log(f"prepare: {describe_refused(suspicious, 'may be damaged')}{listed}: kept")
        return progress

    def _list_all(self, images: Sequence[RefusedImage]) -> str:
        """Write images that are too many for a message into a file, which an earlier call may have left; name it."""
        if len(images) <= _NAMED_IMAGES:
            self._bad_list.unlink(missing_ok=True)
            return ""
        with replace_file(self._bad_list) as file:
            file.writelines(os.fsencode(f"{path}\t{reason}\n") for path, reason in images)
        return f" (all are listed in {self._bad_list})"

    def finish(self) -> None:
        """Write the labels, the index and the manifest; remove what only an unfinished store needs.

        Raises:
            SourceError: the images that are left out leave a class empty.
        """
        request, listing, folder = self._request, self._request.listing, self._folder
        refused = [image for record in self._records for image in record.refused]
        paths = {image.path for image in refused}
        labels = {
            part: np.array([image.label for image in images if image.path not in paths], dtype=np.int64)
            for part, images in listing.parts.items()
        }
        if refused:
            _check_classes(listing, labels, refused)
            self._log(f"prepare: {describe_refused(refused)}: left out, all listed in the store's {MANIFEST}")
        files: dict[str, dict[str, Any]] = {}
        parts: dict[str, dict[str, Any]] = {}
        for part in PARTS:
            shards = [(s.file, record) for s, record in zip(self._plan, self._records, strict=True) if s.part == part]
            arrays = {f"{part}-labels.npy": labels[part]}
            self._digest.facts(labels[part])
            if request.kind == "jpeg":
                index = arrays[f"{part}-index.npy"] = jpeg_index(record.sizes for _, record in shards)
                self._digest.facts(index[:, 1])
            for name, array in arrays.items():
                memory = io.BytesIO()  # NumPy does not say why it cannot write into a file
                np.save(memory, array, allow_pickle=False)
                with replace_file(folder / name) as file:
                    file.write(memory.getbuffer())
                files[name] = file_facts(folder / name)
            files |= {name: {"bytes": record.bytes, "xxh3_128": record.checksum} for name, record in shards}
            parts[part] = {
                "pictures": len(labels[part]),
                "shards": [record.rows for _, record in shards],
                "per_class": np.bincount(labels[part], minlength=len(listing.classes)).tolist(),
            }
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "kind": request.kind,
            "digest": self._digest.hexdigest(),
            "key": request.key,
            "size": request.size,
            "fit": request.fit,
            **({"quality": JPEG_QUALITY} if request.kind == "jpeg" else {}),
            "device": request.device,
            "layout": listing.layout,
            "source": str(listing.source.resolve()),
            "file_list": request.digests[1],
            "synthetic": request.synthetic,
            "held_out": listing.held_out,
            "notes": listing.notes,
            "parts": parts,
            "bad_pictures": request.bad_images,
            "refused": [each._asdict() for each in refused],
            "versions": request.versions,
            "classes": listing.classes,
            "words": listing.words,
            "files": files,
        }
        manifest["checksum"] = manifest_checksum(manifest)
        with replace_file(folder / MANIFEST) as file:
            file.write(json.dumps(manifest, indent=1).encode())
        for shard in reversed(self._plan):  # so that a kill here leaves shards that can be resumed from
            (folder / (shard.file + DONE)).unlink()
        (folder / REQUEST).unlink()
        sync_folder(folder)


def _count_images(shards: Iterable[ShardRange]) -> int:
    return sum(len(shard.images) for shard in shards)


def _sort_out(
    decoded: Iterable[tuple[ImageFile, Outcome]], refused: list[RefusedImage]
) -> Iterator[tuple[int, Pixels | bytes]]:
    """Yield the label and the data of each image that was decoded; add the others to `refused`."""
    for image, outcome in decoded:
        if isinstance(outcome, RefusedImage):
            refused.append(outcome)
        else:
            yield image.label, outcome


def _decoded(
    request: StoreRequest, images: Sequence[ImageFile], suspicious: list[RefusedImage], progress: ProgressLog
) -> Generator[tuple[ImageFile, Outcome], None, None]:
    """Yield each image in order with its pixels, its JPEG or why it has neither; threads decode some ahead.

    Those that were decoded but may be damaged are added to `suspicious`.
    """
    decoder, most, threads = _decoder(request)

    def decode(some: Sequence[ImageFile]) -> list[Outcome]:
        read = [_read(request.listing, image) for image in some]
        paths = [image.path for image, data in zip(some, read, strict=True) if isinstance(data, bytes)]

        def warn(place: int, text: str) -> None:
            suspicious.append(RefusedImage(paths[place], text))

        pixels = iter(decoder([data for data in read if isinstance(data, bytes)], warn))
        outcomes: list[Outcome] = []
        for image, data in zip(some, read, strict=True):
            outcome = data if isinstance(data, RefusedImage) else next(pixels)
            if isinstance(outcome, RefusedImage):
                outcomes.append(outcome)
            elif isinstance(outcome, ImageError):
                outcomes.append(RefusedImage(image.path, str(outcome)))
            else:
                outcomes.append(np.ascontiguousarray(outcome) if request.kind == "raw" else _encode_jpeg(outcome))
        return outcomes

    ahead = _AHEAD_BYTES // expected_bytes("raw", 1, request.size)
    each = min(most, max(1, ahead // (2 * threads)))
    tasks = (images[start : start + each] for start in range(0, len(images), each))
    with closing(map_in_order(decode, tasks, threads)) as results:
        for some, outcomes in results:
            yield from zip(some, outcomes, strict=True)
            progress.step(len(some))


def _decoder(request: StoreRequest) -> tuple[Decoder, int, int]:
    """Return a function that decodes some files, how many of them suit it, and how many threads should call it."""
    size, fit = request.size, request.fit
    if request.device == "cuda":
        from fasttransfer.pipelines.gpu_decoder import GpuDecoder  # here, for DALI takes half a second to load

        return GpuDecoder(size, fit), GpuDecoder.images, GpuDecoder.threads

    def decode(blobs: Sequence[bytes], warn: Callable[[int, str], None]) -> list[Pixels | ImageError]:
        return [decode_or_error(data, size, fit, partial(warn, place)) for place, data in enumerate(blobs)]

    return decode, _CPU_IMAGES, machine.cores()


def _read(listing: Listing, image: ImageFile) -> bytes | RefusedImage:
    """Return an image's file.

    Raises:
        SourceError: it is not the file that was listed.
    """
    try:
        data = listing.read(image)
    except OSError as error:
        return RefusedImage(image.path, f"cannot be read: {os_reason(error)}")
    listed = listing.tree.images[image.path]
    if len(data) != listed.size:
        raise _changed(listing, image.path)
    # An archive's members have no time of their own on disk; the archive itself is checked in the end.
    with suppress(FileNotFoundError, NotADirectoryError):
        if os.stat(f"{listing.source}/{image.path}").st_mtime_ns != listed.mtime_ns:
            raise _changed(listing, image.path)
    return data


def _changed(listing: Listing, what: str) -> SourceError:
    return SourceError(f"{listing.source}: {what} changed while it was prepared: run it again when nobody writes there")


def _encode_jpeg(pixels: Pixels) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "JPEG", quality=JPEG_QUALITY)
    return memory.getvalue()


def _check_classes(listing: Listing, labels: dict[str, NDArray[np.int64]], refused: Sequence[RefusedImage]) -> None:
    """Raise a `SourceError` if leaving out the refused images empties a class of a part."""
    for part, what in (("train", "training"), ("val", "validation")):
        for label in sorted({*listing.labels[part].tolist()} - {*labels[part].tolist()}):
            raise SourceError(
                f"{listing.source}: class {listing.classes[label]} has no {what} image left when those "
                f"that cannot be decoded are left out ({describe_refused(refused)}): repair some or remove the class"
            )
