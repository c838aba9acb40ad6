"""Pictures -> a store: every file is decoded once, checked, resized, and never looked at again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from fasttransfer.errors import InputError
from fasttransfer.files import replace_file, sync_folder
from fasttransfer.pipelines.decode import PictureError, decode
from fasttransfer.pipelines.layouts import Listing, Picture, find_pictures
from fasttransfer.pipelines.once import make_once
from fasttransfer.pipelines.store import FORMAT, MANIFEST, PARTS, Digest, Pixels, Store
from fasttransfer.pipelines.writer import PartWriter

SAY_EVERY = 5.0  # seconds between lines of progress
_TASK = 16  # pictures a thread takes at a time: handing over costs as much as decoding a small picture
_FEW = 5  # bad pictures named in a message

Say = Callable[[str], None]


class Refused(NamedTuple):
    """A picture that cannot be decoded."""

    path: str
    reason: str


def prepare(source: Path, *, size: int, cache: Path, bad_pictures: str = "fail", say: Say = print) -> Store:
    """The store of `source` (a folder or a tar, see `layouts`), made unless the cache has it.

    It is made again when a file was added, removed or changed (its size or time of change). A picture
    that cannot be decoded neither stops a run later nor shrinks it unseen: with "fail" all are checked
    and then told together, with "skip" they are left out and listed in the manifest with their reasons. A
    kill at any moment leaves nothing that looks like a store, and two runs at once make it once.

    Args:
        size: side of the stored pictures in pixels.
        cache: the store is `cache/stores/<key>/`.
        bad_pictures: "fail" | "skip".
        say: gets a line of progress at most every few seconds.

    Raises:
        InputError: bad source, bad pictures, no room on the disk.
    """
    return _prepare(Path(source), size, Path(cache), bad_pictures, say, synthetic=False)


def builtin(*, size: int, cache: Path, train: int, val: int, say: Say = print) -> Store:
    """The store of the built-in pictures, rendered into `cache/builtin/<key>/` unless they are there.

    Args:
        size: side of the rendered and of the stored pictures in pixels.
        train, val: pictures a class.

    Raises:
        InputError: fewer than one picture a class and part, too small a size, no room on the disk.
    """
    from fasttransfer.pipelines import synthetic  # here, for it brings the whole renderer along

    if train < 1 or val < 1:
        raise InputError(f"{train} training and {val} validation pictures a class: say at least one of each")
    key = xxhash.xxh3_128_hexdigest(f"{synthetic.fingerprint()} {size} {train} {val}".encode())
    folder = Path(cache) / "builtin" / key
    pictures = len(synthetic.SIDES) * (train + val)

    def fill(temporary: Path) -> None:
        synthetic.render(temporary, train=train, val=val, size=size, say=say)
        os.sync()  # one by one, thousands of small files take longer to flush than to draw

    make_once(
        folder,
        fill,
        stale=lambda: sum(1 for _ in folder.glob("*/*/*.jpeg")) != pictures,
        waiting=lambda: say("prepare: another run is drawing these pictures, waiting for it"),
    )
    return _prepare(folder, size, Path(cache), "fail", say, synthetic=True)


def _prepare(source: Path, size: int, cache: Path, bad_pictures: str, say: Say, *, synthetic: bool) -> Store:
    if not 1 <= size <= 4096:
        raise InputError(f"size {size}: stored pictures have a side of 1 to 4096 pixels")
    if bad_pictures not in ("fail", "skip"):
        raise InputError(f"bad pictures {bad_pictures!r}: say fail or skip")
    listing = find_pictures(source)
    folder = cache / "stores" / _key(listing, size, bad_pictures)

    damage = ""

    def stale() -> bool:
        nonlocal damage
        try:
            Store.open(folder)
        except InputError as error:
            damage = str(error)
            return True
        return False

    def fill(temporary: Path) -> None:
        if damage:
            say(f"prepare: {damage}: done now")
        _fill(temporary, listing, size, bad_pictures, say, synthetic)

    make_once(
        folder,
        fill,
        stale=stale,
        waiting=lambda: say("prepare: another run is preparing these pictures, waiting for it"),
    )
    return Store.open(folder)


def _key(listing: Listing, size: int, bad_pictures: str) -> str:
    """A digest of what determines the store, found without opening a single picture."""
    words = sorted(listing.words.items())
    head = [FORMAT, size, bad_pictures, str(listing.source.resolve()), listing.layout, listing.classes, words]
    state = xxhash.xxh3_128(json.dumps(head).encode())
    for part in PARTS:
        for picture in getattr(listing, part):
            file = listing.tree.pictures[picture.path]
            line = f"{part}\0{picture.label}\0{picture.path}\0{file.size}\0{file.mtime_ns}\n"
            state.update(os.fsencode(line))
    return state.hexdigest()


def _fill(folder: Path, listing: Listing, size: int, bad_pictures: str, say: Say, synthetic: bool) -> None:
    _announce(folder, listing, size, say)
    refused: list[Refused] = []
    digest = Digest(listing.classes, size)
    progress = _Progress(len(listing.train) + len(listing.val), say)
    parts = {}
    with warnings.catch_warnings():
        # Pillow warns of odd notes in files that decode well. Here, not in the threads: filters are global.
        warnings.simplefilter("ignore")
        for part in PARTS:
            pictures: tuple[Picture, ...] = getattr(listing, part)
            writer = PartWriter(folder, part, most=len(pictures), size=size, digest=digest)
            with closing(_decoded(listing, pictures, size)) as decoded:
                for picture, pixels in decoded:
                    progress.step()
                    if isinstance(pixels, Refused):
                        refused.append(pixels)
                    elif not refused or bad_pictures == "skip":  # else all is thrown away: only check the rest
                        writer.add(pixels, picture.label)
            labels, shards = writer.finish()
            counts = np.bincount(labels, minlength=len(listing.classes))
            parts[part] = {"pictures": len(labels), "shards": shards, "per_class": counts.tolist()}
    if refused and bad_pictures == "fail":
        raise InputError(f"{listing.source}: {_told(refused)}: repair or remove, or leave out with --bad-pictures skip")
    if refused:
        _refuse_emptied(listing, parts, refused)
        say(f"prepare: {_told(refused)}: left out, listed in {MANIFEST}")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "digest": digest.hexdigest(),
        "size": size,
        "layout": listing.layout,
        "source": str(listing.source.resolve()),
        "synthetic": synthetic,
        "held_out": listing.held_out,
        "notes": listing.notes,
        "parts": parts,
        "bad_pictures": bad_pictures,
        "refused": [each._asdict() for each in refused],
        "versions": {
            "fasttransfer": version("fasttransfer"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pillow": version("pillow"),
        },
        "classes": listing.classes,
        "words": listing.words,
    }
    with replace_file(folder / MANIFEST, "wb") as file:
        file.write(json.dumps(manifest, indent=1).encode())
    sync_folder(folder)
    progress.done()


def _announce(folder: Path, listing: Listing, size: int, say: Say) -> None:
    for note in listing.notes:
        say(f"prepare: {listing.source}: {note}")
    need = (len(listing.train) + len(listing.val)) * size * size * 3
    free = shutil.disk_usage(folder).free
    say(
        f"prepare: {len(listing.train):,} training and {len(listing.val):,} validation pictures of "
        f"{len(listing.classes):,} classes at {size} x {size} into {folder.parent}: {_bytes(need)}"
    )
    if need > free:
        raise InputError(
            f"{folder.parent}: the store takes {_bytes(need)}, the disk has {_bytes(free)} free: "
            "free space or choose another cache folder"
        )


def _refuse_emptied(listing: Listing, parts: dict[str, Any], refused: Sequence[Refused]) -> None:
    """Leaving bad pictures out must not leave a class out."""
    for part in PARTS:
        had = np.bincount([each.label for each in getattr(listing, part)], minlength=len(listing.classes))
        has = np.asarray(parts[part]["per_class"])
        for label in np.flatnonzero((had > 0) & (has == 0)):
            what = {"train": "training", "val": "validation"}[part]
            raise InputError(
                f"{listing.source}: class {listing.classes[label]} has no {what} picture left when those "
                f"that cannot be decoded are left out ({_told(refused)}): repair some or remove the class"
            )


def _decoded(
    listing: Listing, pictures: Sequence[Picture], size: int
) -> Generator[tuple[Picture, Pixels | Refused], None, None]:
    """Each picture in order with its pixels or why it has none; a few for each thread are decoded ahead."""

    def work(some: Sequence[Picture]) -> list[tuple[Picture, Pixels | Refused]]:
        return [(picture, _decode(listing, picture, size)) for picture in some]

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ahead: deque[Future[list[tuple[Picture, Pixels | Refused]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
    try:
        for start in range(0, len(pictures), _TASK):
            ahead.append(pool.submit(work, pictures[start : start + _TASK]))
            if len(ahead) > 2 * threads:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(listing: Listing, picture: Picture, size: int) -> Pixels | Refused:
    try:
        return decode(listing.read(picture), size)
    except PictureError as error:
        return Refused(picture.path, str(error))
    except OSError as error:
        return Refused(picture.path, f"cannot be read: {(error.strerror or str(error)).lower()}")


class _Progress:
    """Lines that say how many pictures are done, how fast, and how long it still takes."""

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say, self._count = total, say, 0
        self._start = self._said = time.monotonic()

    def step(self) -> None:
        """One more picture."""
        self._count += 1
        now = time.monotonic()
        if now - self._said >= SAY_EVERY:
            self._said = now
            rate = self._count / (now - self._start)
            self._say(
                f"prepare: {self._count:,} of {self._total:,} pictures, {rate:,.0f} a second, "
                f"{_time((self._total - self._count) / rate)} left"
            )

    def done(self) -> None:
        """The last line."""
        took = time.monotonic() - self._start
        self._say(f"prepare: done in {_time(took)}, {self._count / max(took, 1e-9):,.0f} pictures a second")


def _told(refused: Sequence[Refused]) -> str:
    some = "; ".join(f"{path} ({reason})" for path, reason in refused[:_FEW])
    more = f"; and {len(refused) - _FEW:,} more" if len(refused) > _FEW else ""
    return f"{len(refused):,} picture{'' if len(refused) == 1 else 's'} cannot be decoded: {some}{more}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
