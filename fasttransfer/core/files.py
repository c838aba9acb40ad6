"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import platformdirs

from fasttransfer.core.errors import InputError

# What a full, read-only or forbidden disk answers: the user's to put right, not a bug.
_DISK_TROUBLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a disk that is full, read-only or forbidden into an `InputError` about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_TROUBLE:
            raise
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path}: cannot write here ({reason}): free space or choose another folder") from error


@contextmanager
def replace_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path`; on a clean exit it takes the place of `path`, else it is removed.

    After the `with` block the bytes and the new name are on disk (fsync of file and folder), so that a reader or
    a power cut never meets half a file.

    Raises:
        InputError: the disk is full, read-only or not ours to write.
    """
    path = Path(path)
    temporary: str | None = None
    with disk_errors(path):
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            with os.fdopen(handle, mode) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            temporary = None
            sync_folder(path.parent)
        finally:
            if temporary is not None and os.path.exists(temporary):
                os.unlink(temporary)


def remove_temporary_files(folder: Path) -> None:
    """Removes what writers that were killed in `replace_file` left in `folder`, where nobody writes now."""
    for left in folder.glob(".*.tmp"):
        if left.is_file():
            left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> Path:
    """Creates `folder` and its parents; returns it.

    Raises:
        InputError: it cannot be created, or something else has its name.
    """
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{folder}: a file has this name, a folder is needed: choose another") from None
    return folder


@contextmanager
def hold_lock(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of the file `path`, which dies with its process; never removed, so that all lock the same file.

    `busy` is called when another process holds it. What it raises ends the attempt; when it returns, the turn is
    waited for.

    Raises:
        InputError: the file cannot be made.
    """
    with disk_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Where prepared images are kept: `$FASTTRANSFER_CACHE`, else the user's cache folder of this system."""
    named = os.environ.get("FASTTRANSFER_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("fasttransfer"))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
