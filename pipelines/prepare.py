"""Images -> a store: every file is decoded once, checked, resized, and never looked at again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import disk_errors
from fasttransfer.core.make_once import make_once, temporary_of
from fasttransfer.core.progress import Log
from fasttransfer.pipelines import journal
from fasttransfer.pipelines.decode import FITS
from fasttransfer.pipelines.layouts import Listing, list_images
from fasttransfer.pipelines.store import MANIFEST, SUFFIX, Kind, Store, UnreadableStoreError
from fasttransfer.pipelines.write_store import StoreRequest, request_digests, write_store

_KEEP_SECONDS = 7 * 24 * 3600  # for so long work that was stopped waits in the cache to be gone on with


def prepare(
    source: Path | Listing,
    *,
    size: int,
    cache: Path,
    kind: Kind = "raw",
    fit: str = "stretch",
    bad_images: str = "fail",
    device: str = "cpu",
    log: Log = print,
) -> Store:
    """The store of `source` (a folder or a tar, see `layouts`), made unless the cache has it.

    It is made again when a file was added, removed or changed (its size or time of change). An image that cannot be
    decoded neither stops a run later nor shrinks it unseen: with "fail" all are checked and then told together, with
    "skip" they are left out and listed in the manifest with their reasons. Two runs at once make it once.

    A kill at any moment, Ctrl-C or a full disk leaves nothing that looks like a store, and loses no shard that was
    complete: the same call goes on from there, once it has read them back, and ends with the same files as if nothing
    had happened. Work on other images that was stopped is removed from the cache after a week, and at once when its
    source is gone or is being prepared again after a change.

    Args:
        size: side of the stored images in pixels.
        cache: the store is `cache/stores/<key>/`. Which device decoded does not enter the key: what is there is used.
        kind: "raw" | "jpeg", see `fasttransfer.pipelines.store`.
        fit: "stretch" | "crop", see `fasttransfer.pipelines.decode.decode`.
        bad_images: "fail" | "skip".
        device: "cpu" | "cuda", where to decode.
        say: gets a line of progress at most every few seconds.

    Raises:
        InputError: bad source, bad images, images that changed meanwhile, no room on the disk.
    """
    return _in_cache(_job(source, size, kind, fit, bad_images, device), Path(cache), log)


def prepare_into(
    source: Path | Listing,
    folder: Path,
    *,
    size: int,
    kind: Kind = "raw",
    fit: str = "stretch",
    bad_images: str = "fail",
    device: str = "cpu",
    log: Log = print,
) -> Store:
    """Like `prepare`, but the store is `folder`, which is to be absent, empty, or this very store.

    What is left of a call that was stopped is the hidden folder `.<name>.tmp` beside it.

    Raises:
        InputError: as `prepare`, and when something else is in `folder`.
    """
    job = _job(source, size, kind, fit, bad_images, device)
    folder = Path(folder).resolve()
    if job.listing.source.resolve() in folder.parents:
        raise InputError(f"{folder}: lies inside the images, which then would change: name a folder elsewhere")

    def stale() -> bool:
        return not _is_store_of(job, folder)

    def fill_still_free(temporary: Path) -> None:
        write_store(temporary, job, log)
        if folder.exists():
            stale()  # raises if somebody put something there meanwhile

    with disk_errors(folder):
        there = folder.exists() and not stale()
    if there:
        log(f"prepare: {folder} is this store already: nothing to do")
    # Work of others beside it is not ours to judge.
    return _make(job, folder, fill_still_free, stale, lambda other: True, log)


def find_started(source: Listing, *, size: int, cache: Path, bad_images: str = "fail") -> tuple[Kind, ...]:
    """The kinds of store that `prepare` has in the cache, or works on, or would go on with."""
    kinds: tuple[Kind, ...] = ("raw", "jpeg")
    jobs = [_job(source, size, kind, bad_images=bad_images) for kind in kinds]
    folders = [Path(cache) / "stores" / key for key in request_digests(source, [job.named for job in jobs])]
    of = zip(kinds, folders, strict=True)
    return tuple(kind for kind, folder in of if folder.exists() or temporary_of(folder).exists())


def find_finished(source: Listing, *, size: int, cache: Path, kind: Kind, bad_images: str = "fail") -> Path | None:
    """The store that `prepare` has in the cache; None where there is work left."""
    folder = Path(cache) / "stores" / _job(source, size, kind, bad_images=bad_images).key
    return folder if folder.exists() else None


def builtin_folder(*, size: int, cache: Path, train: int, val: int) -> Path:
    """Where `prepare_builtin` renders the images that it prepares."""
    from fasttransfer.pipelines import synthetic  # here, for it brings the whole renderer along

    key = xxhash.xxh3_128_hexdigest(f"{synthetic.fingerprint()} {size} {train} {val}".encode())
    return Path(cache) / "builtin" / key


def prepare_builtin(*, size: int, cache: Path, train: int, val: int, kind: Kind = "raw", log: Log = print) -> Store:
    """The store of the built-in images, rendered into `cache/builtin/<key>/` unless they are there.

    Args:
        size: side of the rendered and of the stored images in pixels.
        train, val: images per class.

    Raises:
        InputError: fewer than one image a class and part, too small a size, no room on the disk.
    """
    from fasttransfer.pipelines import synthetic  # here, for it brings the whole renderer along

    if train < 1 or val < 1:
        raise InputError(f"{train} training and {val} validation images per class: say at least one of each")
    folder = builtin_folder(size=size, cache=cache, train=train, val=val)
    images = len(synthetic.SIDES) * (train + val)

    def fill(temporary: Path) -> None:
        synthetic.render(temporary, train=train, val=val, size=size, log=log)
        os.sync()  # one by one, thousands of small files take longer to flush than to draw

    make_once(
        folder,
        fill,
        stale=lambda: sum(1 for _ in folder.glob("*/*/*.jpeg")) != images,
        waiting=lambda: log("prepare: another run is drawing these images, waiting for it"),
    )
    return _in_cache(_job(folder, size, kind, synthetic=True), Path(cache), log)


def _job(
    source: Path | Listing,
    size: int,
    kind: Kind = "raw",
    fit: str = "stretch",
    bad_images: str = "fail",
    device: str = "cpu",
    *,
    synthetic: bool = False,
) -> StoreRequest:
    if not 1 <= size <= 4096:
        raise InputError(f"size {size}: stored images have a side of 1 to 4096 pixels")
    if kind not in SUFFIX:
        raise InputError(f"kind {kind!r}: say raw or jpeg")
    if fit not in FITS:
        raise InputError(f"fit {fit!r}: say stretch or crop")
    if bad_images not in ("fail", "skip"):
        raise InputError(f"bad images {bad_images!r}: say fail or skip")
    listing = source if isinstance(source, Listing) else list_images(Path(source))
    return StoreRequest(listing, size, kind, fit, bad_images, device, synthetic)


def _in_cache(job: StoreRequest, cache: Path, log: Log) -> Store:
    folder = cache / "stores" / job.key
    damage = ""

    def stale() -> bool:
        nonlocal damage
        try:
            Store.open(folder)
        except UnreadableStoreError:
            raise
        except InputError as error:
            damage = str(error)
            return True
        return False

    def fill_and_tell(temporary: Path) -> None:
        if damage:
            log(f"prepare: {damage}: done now")
        write_store(temporary, job, log)

    return _make(job, folder, fill_and_tell, stale, lambda other: _may_go_on(other, job), log)


def _make(
    job: StoreRequest,
    folder: Path,
    fill: Callable[[Path], None],
    stale: Callable[[], bool],
    keep: Callable[[Path], bool],
    log: Log,
) -> Store:
    def keep_ours_too(temporary: Path) -> bool:
        if temporary != temporary_of(folder):
            return keep(temporary)
        head, entries = journal.read_journal(temporary)
        return head == job.head and any(entry.shard for entry in entries)

    try:
        make_once(
            folder,
            fill,
            stale=stale,
            waiting=lambda: log("prepare: another run is preparing these images, waiting for it"),
            keep=keep_ours_too,
        )
    except BaseException:
        if keep_ours_too(temporary_of(folder)):
            log("prepare: stopped; what is complete is kept, the same command goes on from there")
        raise
    return Store.open(folder)


def _may_go_on(temporary: Path, job: StoreRequest) -> bool:
    """Whether work that was stopped, on another store than that of `job`, may still be gone on with."""
    head, entries = journal.read_journal(temporary)
    if head is None or not any(entry.shard for entry in entries) or not Path(head["source"]).exists():
        return False
    if (head["source"], head["choices"]) == (job.head["source"], job.head["choices"]):
        return False  # the images changed
    return time.time() - (temporary / journal.JOURNAL).stat().st_mtime < _KEEP_SECONDS


def _is_store_of(job: StoreRequest, folder: Path) -> bool:
    """False where there is room for it; raises where there is something else."""
    if not folder.is_dir():
        raise InputError(f"{folder}: a file has this name, a folder is needed: choose another")
    if (folder / MANIFEST).exists():
        there = Store.open(folder)
        if there.manifest.get("key") != job.key:
            raise InputError(
                f"{folder}: another store is here ({there.kind}, {there.size} x {there.size}, of "
                f"{there.manifest.get('source')}, or the images changed since): name another folder or delete it"
            )
        return True
    if any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no store: name another folder or empty it")
    return False
