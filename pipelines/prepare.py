"""Make a store from images: every file is decoded once, checked, resized, and never read again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, Unpack

import xxhash

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import disk_errors
from fasttransfer.core.make_once import make_once, temporary_of
from fasttransfer.core.progress import Log
from fasttransfer.pipelines.decode import FITS
from fasttransfer.pipelines.layouts import Listing, list_images
from fasttransfer.pipelines.store import MANIFEST, SUFFIX, Kind, Store, UnreadableStoreError
from fasttransfer.pipelines.store_request import StoreRequest
from fasttransfer.pipelines.write_store import read_unfinished, write_store

_KEEP_SECONDS = 7 * 24 * 3600  # how long interrupted work waits in the cache to be resumed


class StoreChoices(TypedDict, total=False):
    """The choices of `prepare` that have defaults."""

    kind: Kind
    fit: str
    bad_images: str
    device: str


def prepare(
    source: Path | Listing, *, size: int, cache: Path, log: Log = print, **choices: Unpack[StoreChoices]
) -> Store:
    """Return the store of `source` (a folder or a tar, see `layouts`); make it unless the cache has it.

    It is made again when a file was added, removed or changed (its size or time of change). An image that cannot be
    decoded neither stops a later run nor silently shrinks it: with "fail" all images are checked and the bad ones
    listed together, many of them in the file `<key>.bad-images.txt` beside the store; with "skip" they are left out and
    listed in the manifest with their reasons. Two processes that prepare the same images make the store once.

    A kill at any moment, Ctrl-C or a full disk leaves nothing that looks like a store, and loses no complete shard: the
    same call resumes, once it has verified the shards, and ends with the same files as an undisturbed one. Interrupted
    work on other images is removed from the cache after a week, and at once when its source is gone or is being
    prepared again after a change.

    Args:
        size: side of the stored images in pixels.
        cache: the store is `cache/stores/<key>/`. The device does not enter the key: a store that is there is used.
        kind: "raw" (default) | "jpeg", see `fasttransfer.pipelines.store`.
        fit: "stretch" (default) | "crop", see `fasttransfer.pipelines.decode.decode`.
        bad_images: "fail" (default) | "skip".
        device: "cpu" (default) | "cuda", the device that decodes.
        log: called with a line of progress at most every few seconds.

    Raises:
        InputError: bad source, bad images, images that changed meanwhile, no room on the disk.
    """
    return _make_in_cache(_request(source, size, **choices), cache, log)


def prepare_into(
    source: Path | Listing, folder: Path, *, size: int, log: Log = print, **choices: Unpack[StoreChoices]
) -> Store:
    """Make the store in `folder`, which must be absent, empty, or this very store; else like `prepare`.

    An interrupted call leaves its work in the hidden folder `.<name>.tmp` beside it.

    Raises:
        InputError: as `prepare`, and when something else is in `folder`.
    """
    request = _request(source, size, **choices)
    folder = Path(folder).resolve()
    if request.listing.source.resolve() in folder.parents:
        raise InputError(f"{folder}: lies inside the images, which then would change: name a folder elsewhere")

    def is_stale() -> bool:
        return not _is_store_of(request, folder)

    with disk_errors(folder):
        is_there = folder.exists() and not is_stale()
    if is_there:
        log(f"prepare: {folder} is this store already: nothing to do")
    # The folder may be anywhere: what other programs left beside it stays.
    return _make(request, folder, is_stale, lambda other: True, log)


def find_started(source: Listing, *, size: int, cache: Path, bad_images: str = "fail") -> tuple[Kind, ...]:
    """Return the kinds of store that the cache has, complete, in work or interrupted."""
    kinds: tuple[Kind, ...] = ("raw", "jpeg")
    folders = [_cached_folder(cache, _request(source, size, kind, bad_images=bad_images)) for kind in kinds]
    return tuple(
        kind for kind, folder in zip(kinds, folders, strict=True) if folder.exists() or temporary_of(folder).exists()
    )


def find_finished(source: Listing, *, size: int, cache: Path, kind: Kind, bad_images: str = "fail") -> Path | None:
    """Return the store that the cache has; None where `prepare` would have to make it."""
    folder = _cached_folder(cache, _request(source, size, kind, bad_images=bad_images))
    return folder if folder.exists() else None


def builtin_folder(*, size: int, cache: Path, train: int, val: int) -> Path:
    """Return the folder into which `prepare_builtin` renders the images that it prepares."""
    from fasttransfer.pipelines import synthetic  # here, because it imports the whole renderer

    key = xxhash.xxh3_128_hexdigest(f"{synthetic.fingerprint()} {size} {train} {val}".encode())
    return Path(cache) / "builtin" / key


def prepare_builtin(*, size: int, cache: Path, train: int, val: int, kind: Kind = "raw", log: Log = print) -> Store:
    """Return the store of the built-in images, rendered into `cache/builtin/<key>/` unless they are there.

    Args:
        size: side of the rendered and of the stored images in pixels.
        train, val: images per class.

    Raises:
        InputError: fewer than one image per class and part, too small a size, no room on the disk.
    """
    from fasttransfer.pipelines import synthetic  # here, because it imports the whole renderer

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
    return _make_in_cache(_request(folder, size, kind, synthetic=True), cache, log)


def _request(
    source: Path | Listing,
    size: int,
    kind: Kind = "raw",
    fit: str = "stretch",
    bad_images: str = "fail",
    device: str = "cpu",
    synthetic: bool = False,
) -> StoreRequest:
    """Return the request, its choices checked and the images listed."""
    if not 1 <= size <= 4096:
        raise InputError(f"size {size}: stored images have a side of 1 to 4096 pixels")
    if kind not in SUFFIX:
        raise InputError(f"kind {kind!r}: say raw or jpeg")
    if fit not in FITS:
        raise InputError(f"fit {fit!r}: say stretch or crop")
    if bad_images not in ("fail", "skip"):
        raise InputError(f"bad images {bad_images!r}: say fail or skip")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device {device!r}: say cpu or cuda")
    listing = source if isinstance(source, Listing) else list_images(Path(source))
    return StoreRequest(listing, size, kind, fit, bad_images, device, synthetic)


def _cached_folder(cache: Path, request: StoreRequest) -> Path:
    return Path(cache) / "stores" / request.key


def _make_in_cache(request: StoreRequest, cache: Path, log: Log) -> Store:
    folder = _cached_folder(cache, request)
    if damage := _damage(folder):
        log(f"prepare: {damage}: done now")
    return _make(request, folder, lambda: bool(_damage(folder)), lambda other: _is_resumable(other, request), log)


def _damage(folder: Path) -> str:
    """Return why the store in `folder` must be made again; "" where it need not, or is not there."""
    try:
        if folder.exists():
            Store.open(folder)
    except UnreadableStoreError:
        raise
    except InputError as error:
        return str(error)
    return ""


def _make(
    request: StoreRequest,
    folder: Path,
    is_stale: Callable[[], bool],
    should_keep: Callable[[Path], bool],
    log: Log,
) -> Store:
    """Make `folder` once; `should_keep` decides about interrupted work on other stores beside it."""

    for note in request.listing.notes:
        log(f"prepare: {request.listing.source}: {note}")

    def fill(temporary: Path) -> None:
        write_store(temporary, request, folder.with_name(f"{folder.name}.bad-images.txt"), log)
        if folder.exists():
            is_stale()  # raises if somebody put something there meanwhile

    def should_keep_ours_too(temporary: Path) -> bool:
        if temporary != temporary_of(folder):
            return should_keep(temporary)
        return read_unfinished(temporary) == request.identity

    try:
        make_once(
            folder,
            fill,
            stale=is_stale,
            waiting=lambda: log("prepare: another run is preparing these images, waiting for it"),
            keep=should_keep_ours_too,
        )
    except BaseException:
        if should_keep_ours_too(temporary_of(folder)):
            log("prepare: interrupted; complete shards are kept, and the same command resumes from them")
        raise
    return Store.open(folder)


def _is_resumable(temporary: Path, request: StoreRequest) -> bool:
    """Return whether interrupted work on another store than the requested one may still be resumed."""
    identity = read_unfinished(temporary)
    if identity is None or not Path(identity["source"]).exists():
        return False
    if all(identity[name] == request.identity[name] for name in ("source", "choices")):
        return False  # the images changed
    return time.time() - temporary.stat().st_mtime < _KEEP_SECONDS


def _is_store_of(request: StoreRequest, folder: Path) -> bool:
    """Return whether `folder` is the requested store; False where there is room for it.

    Raises:
        InputError: something else is there.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: a file has this name, a folder is needed: choose another")
    if (folder / MANIFEST).exists():
        store = Store.open(folder)
        if store.manifest.get("key") != request.key:
            raise InputError(
                f"{folder}: another store is here ({store.kind}, {store.size} x {store.size}, of "
                f"{store.manifest.get('source')}, or the images changed since): name another folder or delete it"
            )
        return True
    if any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no store: name another folder or empty it")
    return False
