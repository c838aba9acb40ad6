"""Folders that are costly to make: made once and whole, for several processes, whichever of them is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
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
    """Make `folder` by `fill(temporary folder)` and a rename, unless it exists and is not `stale()`.

    Processes that want the same folder take turns by a lock file beside it, `.<name>.lock`; the second finds the work
    done. The lock ends with its process, so that a temporary folder whose lock is free is a leftover. `waiting` is
    called once if another process is at work.

    `keep(temporary)` decides about leftovers, of this folder and of others beside it, by this process and by killed
    ones: the next `fill` of the folder starts from a leftover that is kept; others are removed.

    `fill` must flush its files to disk (fsync) before it returns.

    Raises:
        InputError: the disk is full, read-only or not writable.
    """
    if folder.exists() and not stale():
        return  # without the lock: a cache that is only read need not be writable
    make_folder(folder.parent)
    with hold_lock(lock_of(folder), waiting):
        if folder.exists() and not stale():
            return
        sweep_unfinished(folder.parent, keep)
        temporary = temporary_of(folder)
        try:
            with disk_errors(folder):
                if temporary.exists() and not keep(temporary):
                    shutil.rmtree(temporary)
                temporary.mkdir(exist_ok=True)
                fill(temporary)
                if folder.exists():
                    shutil.rmtree(folder)
                os.rename(temporary, folder)
                sync_folder(folder.parent)
        finally:
            if not keep(temporary):
                shutil.rmtree(temporary, ignore_errors=True)


def temporary_of(folder: Path) -> Path:
    """Return the path of `folder` while it is being made."""
    return folder.with_name(f".{folder.name}.tmp")


def lock_of(folder: Path) -> Path:
    """Return the file that the process that makes `folder` locks."""
    return folder.with_name(f".{folder.name}.lock")


def sweep_unfinished(parent: Path, keep: Callable[[Path], bool] = lambda temporary: False) -> None:
    """Remove the temporary folders whose lock is free, except those to keep."""

    def leave() -> None:
        raise BlockingIOError

    for temporary in parent.glob(".*.tmp"):
        lock = temporary.with_suffix(".lock")
        if os.access(lock, os.R_OK | os.W_OK):
            with suppress(BlockingIOError), hold_lock(lock, leave):
                if not keep(temporary):
                    shutil.rmtree(temporary, ignore_errors=True)
