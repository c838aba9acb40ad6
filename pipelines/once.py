"""Folders that are costly to make: made once, whole or absent, whoever wants them, whatever is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fasttransfer.files import disk_trouble, locked, make_folder, sync_folder


def make_once(
    folder: Path, fill: Callable[[Path], None], *, stale: Callable[[], bool], waiting: Callable[[], None]
) -> None:
    """Makes `folder` by `fill(temporary folder)` and a rename, unless it is there and `stale()` says no.

    Two processes that want the same folder take turns by a locked file beside it, `.<name>.lock`; the
    second finds the work done. The lock dies with its process, so that the temporary folder of a killed
    one is known to be left over and is removed by the next call that makes a folder here. `waiting` is
    called once if another process is at work.

    `fill` must have its files on disk (fsync) when it returns.

    Raises:
        InputError: the disk is full, read-only or not ours to write.
    """
    if folder.exists() and not stale():
        return  # without the lock: a cache that is only read need not be ours to write
    make_folder(folder.parent)
    with locked(_lock_of(folder), waiting):
        if folder.exists() and not stale():
            return
        _sweep(folder.parent)
        temporary = folder.with_name(f".{folder.name}.tmp")
        try:
            with disk_trouble(folder):
                _remove(temporary)
                temporary.mkdir()
                fill(temporary)
                _remove(folder)
                os.rename(temporary, folder)
                sync_folder(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _sweep(parent: Path) -> None:
    """Removes what killed processes left: temporary folders whose lock is free. Ours is locked, by us."""
    for temporary in parent.glob(".*.tmp"):
        lock = temporary.with_suffix(".lock")
        try:
            handle = os.open(lock, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(temporary, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(handle)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
