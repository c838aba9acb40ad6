"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import filelock
import platformdirs

from fasttransfer.core.errors import InputError, os_reason

# Read once, at import: asking for it sets it for a moment, in which another thread may create a file.
_UMASK = os.umask(0)
os.umask(_UMASK)

STUDY_FILE, LOCK_FILE = "study.toml", ".lock"
"""Files of a study's folder that tell it from a folder of images; the lock is there first."""

# Errors that the user can put right: of a full, failing, read-only or forbidden disk, and of a path that cannot be.
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}
_FORBIDDEN_ERRNOS = {errno.EROFS, errno.EACCES, errno.EPERM}
_PATH_ERRNOS = {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
_DISK_ERRNOS = _FULL_ERRNOS | _FORBIDDEN_ERRNOS | _PATH_ERRNOS

# The errors of locking a file on a file system without locks, as some mounts of NFS and Lustre are.
_LOCKLESS_ERRNOS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_LEASE_SECONDS = 30.0


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a disk that is full, read-only, forbidden or failing into an `InputError` about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRNOS:
            raise
        raise InputError(f"{path}: cannot write here ({os_reason(error)}): free space or {_other(path)}") from error


@contextmanager
def access_errors() -> Iterator[None]:
    """Turn an error of the disk or a refusal, wherever it comes up, into an `InputError` about the file or folder."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.errno not in _FULL_ERRNOS | _FORBIDDEN_ERRNOS:
            raise
        path = Path(os.fsdecode(error.filename))
        what = "see to its disk" if error.errno in _FULL_ERRNOS else "see to its permissions"
        raise InputError(f"{path}: {os_reason(error)}: {what} or {_other(path)}") from error


def _other(path: Path) -> str:
    """Return the remedy that is always left where `path` cannot be used."""
    is_cached = path.absolute().is_relative_to(cache_folder().absolute())
    return "name another folder for the cache with FASTTRANSFER_CACHE" if is_cached else "choose another folder"


@contextmanager
def replace_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`, which replaces `path` on a clean exit and is removed otherwise.

    After the `with` block the bytes and the new name are on disk (fsync of file and folder), so that a reader or
    a power cut never meets half a file.

    Raises:
        InputError: the disk is full, read-only or not writable.
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
            os.chmod(temporary, 0o666 & ~_UMASK)
            os.replace(temporary, path)
            temporary = None
            sync_folder(path.parent)
        finally:
            if temporary is not None and os.path.exists(temporary):
                os.unlink(temporary)


def remove_temporary_files(folder: Path, seconds: float = 0.0) -> None:
    """Remove the temporary files that writers killed in `replace_file` left in `folder`.

    Args:
        seconds: least age of what is removed, where others may be writing.
    """
    for file in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if file.is_file() and time.time() - file.stat().st_mtime >= seconds:
                file.unlink()


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> Path:
    """Create `folder` and its parents, and return it.

    Raises:
        InputError: the folder cannot be created, or a file has its name.
    """
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{folder}: a file has this name, a folder is needed: choose another") from None
    return folder


def require_writable(folder: Path) -> None:
    """Check that `make_folder` could create `folder`, or that files can be written into it where it is there.

    Raises:
        InputError: they cannot, or a file has its name or that of a folder above it.
    """
    folder = Path(os.path.abspath(folder))
    with disk_errors(folder):
        above = next(each for each in (folder, *folder.parents) if each.exists())
        folder.exists()  # raises where the name is too long
        if not above.is_dir():
            raise InputError(f"{above}: a file has this name, a folder is needed: choose another")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def hold_lock(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold a lock on the file `path`, which ends with the process. The file stays, so that all lock the same one.

    Calls `busy` if another process holds the lock, then waits for it; an exception from `busy` ends the attempt. On a
    file system without locks see `_hold_lease`.

    Raises:
        InputError: the file cannot be created.
    """
    with disk_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _LOCKLESS_ERRNOS:
                raise
            with _hold_lease(lease_of(path), busy):
                yield
                return
        yield
    finally:
        os.close(handle)


def has_locks(path: Path) -> bool:
    """Return whether the file system of the existing file `path` has locks (fcntl's, as SQLite takes them)."""
    with open(path, "rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _LOCKLESS_ERRNOS
    return True


def lease_of(lock: Path) -> Path:
    """Return the file that stands for the lock on the file `lock` where the file system has no locks."""
    return lock.with_name(f"{lock.name}.lease")


@contextmanager
def _hold_lease(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold the file `path`, which exists as long as it is held, as `hold_lock` holds a lock.

    Its owner renews it every ten seconds. Another process takes it over when the owner was a process of this machine
    that has ended, or when it has not been renewed for half a minute; only then does that process call `busy`. An owner
    that was suspended for so long and finds it taken stops as by SIGTERM.
    """

    def stop(loss: filelock.LeaseCompromise) -> None:
        print(f"fasttransfer: {path}: another process has taken over the work here: stopping", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    lease = filelock.SoftFileLease(path, lease_duration=_LEASE_SECONDS, on_compromise=stop)
    with disk_errors(path):
        try:
            lease.acquire(timeout=1.2 * _LEASE_SECONDS)
        except filelock.Timeout:
            busy()
            lease.acquire()
    try:
        yield
    finally:
        lease.release()


def cache_folder() -> Path:
    """Return the folder of prepared images and features: `$FASTTRANSFER_CACHE`, else in the user's cache folder."""
    folder = os.environ.get("FASTTRANSFER_CACHE")
    return Path(folder) if folder else Path(platformdirs.user_cache_dir("fasttransfer"))
