"""Folders that are costly to make: made once, whole or absent, whoever wants them, whatever is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fasttransfer.core.files import disk_errors, hold_lock, make_folder, sync_folder


def make_once(
    folder: Path,
    fill: Callable[[Path], None],
    *,
    stale: Callable[[], bool],
    waiting: Callable[[], None],
    keep: Callable[[Path], bool] = lambda temporary: False,
) -> None:
    """Makes `folder` by `fill(temporary folder)` and a rename, unless it is there and `stale()` says no.

    Two processes that want the same folder take turns by a locked file beside it, `.<name>.lock`; the second finds the
    work done. The lock dies with its process, so that a temporary folder whose lock is free is known to be left over.
    `waiting` is called once if another process is at work.

    `keep(temporary)` decides on what is left over, of this folder and of the others beside it, by this process and by
    killed ones: what is kept, `fill` meets when the folder is asked for again; the rest is removed.

    `fill` must have its files on disk (fsync) when it returns.

    Raises:
        InputError: the disk is full, read-only or not ours to write.
    """
    if folder.exists() and not stale():
        return  # without the lock: a cache that is only read need not be ours to write
    make_folder(folder.parent)
    with hold_lock(lock_of(folder), waiting):
        if folder.exists() and not stale():
            return
        sweep_unfinished(folder.parent, keep)
        temporary = temporary_of(folder)
        try:
            with disk_errors(folder):
                if not keep(temporary):
                    _remove(temporary)
                temporary.mkdir(exist_ok=True)
                fill(temporary)
                _remove(folder)
                os.rename(temporary, folder)
                sync_folder(folder.parent)
        finally:
            if not keep(temporary):
                shutil.rmtree(temporary, ignore_errors=True)


def temporary_of(folder: Path) -> Path:
    """Where `folder` is while it is being made."""
    return folder.with_name(f".{folder.name}.tmp")


def lock_of(folder: Path) -> Path:
    """The file that is locked by whoever makes `folder`."""
    return folder.with_name(f".{folder.name}.lock")


def sweep_unfinished(parent: Path, keep: Callable[[Path], bool] = lambda temporary: False) -> None:
    """Removes temporary folders whose lock is free and that are not kept. Ours is locked, by us."""
    for temporary in parent.glob(".*.tmp"):
        lock = temporary.with_suffix(".lock")
        try:
            handle = os.open(lock, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not keep(temporary):
                shutil.rmtree(temporary, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(handle)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
