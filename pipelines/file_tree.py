"""List the files of a folder or of an uncompressed tar; a tar is indexed once, then read in place by offset."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fasttransfer.core.errors import InputError, os_reason
from fasttransfer.core.files import LOCK_FILE, STUDY_FILE, cache_folder
from fasttransfer.pipelines.archives import Archive, ArchiveError, ArchiveMember, read_at
from fasttransfer.pipelines.file_kinds import (
    EXTENSIONS,
    FIRST_BYTES,
    UNREAD,
    begins_like_image,
    begins_like_unread,
    is_other_kind,
)
from fasttransfer.pipelines.store import MANIFEST, is_manifest

# Folders that systems, network drives and programs put beside the files of people.
_OF_SYSTEMS = re.compile(
    r"@eadir|@recycle|@tmp|@__thumb|#recycle|#snapshot|\$recycle\.bin|recycler|lost\+found|"
    r"system volume information|__macosx|__pycache__",
    re.IGNORECASE,
)
# Names of folders of small copies, in lower case; they are that only beside the images: a class may have such a name.
_THUMBNAILS = frozenset(("thumb", "thumbs", "thumbnail", "thumbnails"))
_MARKS = frozenset((STUDY_FILE, LOCK_FILE, MANIFEST))  # of folders that fasttransfer writes

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


class File(NamedTuple):
    """One file: its size and time as listed, and where its bytes are.

    `archive` is the path, below the source, of the tar that has the bytes at `offset`: "" where the source is that tar,
    None for a file of its own. `trouble` says why a listed file cannot be read at all (a broken link).
    """

    size: int
    mtime_ns: int
    offset: int = 0
    archive: str | None = None
    trouble: str = ""


Files = dict[str, File]  # by path in the source


@dataclass
class Tree:
    """Folders, images and texts of a source by their paths in it; nothing hidden (".name") is listed.

    What fasttransfer wrote into the source is no part of it: the folders of studies and stores, and the cache.
    """

    root: Path
    images: Files = field(default_factory=dict)
    texts: Files = field(default_factory=dict)
    archives: Files = field(default_factory=dict)  # tars inside, which `mount` reads
    folders: set[str] = field(default_factory=set)
    packed: list[str] = field(default_factory=list)  # compressed archives inside
    unread: Counter[str] = field(default_factory=Counter)  # extension -> files of a kind that cannot be read
    marks: Files = field(default_factory=dict)  # files that may mark a folder as written by fasttransfer
    outputs: set[str] = field(default_factory=set)  # folders that fasttransfer wrote
    thumbnails: set[str] = field(default_factory=set)  # folders of small copies of the images beside

    def subfolders(self, prefix: str) -> set[str]:
        """Return the names of the folders directly inside `prefix` ("" or "a/b/")."""
        inside = (folder[len(prefix) :] for folder in self.folders if folder.startswith(prefix))
        return {name for name in inside if name and "/" not in name}

    def has_files(self, folder: str) -> bool:
        """Return whether an image or archive lies in the folder, at any depth."""
        return any(path.startswith(f"{folder}/") for shelf in (self.images, self.archives) for path in shelf)

    def read(self, path: str, file: File) -> bytes:
        """Return the bytes of a file. Thread-safe.

        Raises:
            OSError: it cannot be read.
        """
        if file.trouble:
            raise OSError(file.trouble)
        if file.archive is not None:
            return read_at(self.root / file.archive, file.offset, file.size)
        with open(self.root / path, "rb") as opened:
            return opened.read()

    def read_text(self, path: str) -> str:
        """Return the text at `path`.

        Raises:
            InputError: it cannot be read, or is not UTF-8.
        """
        try:
            return self.read(path, self.texts.get(path, File(0, 0))).decode("utf-8-sig")
        except OSError as error:
            raise InputError(f"{self.root}: {path} cannot be read ({os_reason(error)}): put it right") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{self.root}: {path} is not UTF-8 text ({error}): save it as UTF-8") from error

    def open_archive(self, path: str) -> Archive:
        """Open the tar at `path` of the source, which may lie in another tar; "" is the source itself.

        Raises:
            InputError: it is compressed, or cannot be read.
        """
        what, file = self.root / path, self.archives.get(path)
        try:
            if file is not None and file.trouble:
                raise OSError(file.trouble)
            end = None if file is None else file.offset + file.size
            archive = Archive(self.root / self.home(path), file.offset if file else 0, end)
            remedy = archive.packed()
        except OSError as error:
            raise InputError(f"{what}: cannot be read ({os_reason(error)}): put it right or remove it") from error
        if remedy:
            raise InputError(f"{what}: is compressed, but archives are read in place: {remedy}")
        return archive

    def mount(self, path: str) -> None:
        """List the tar at `path` as if it were a folder, with its name less ".tar"; "" is the source itself.

        Raises:
            InputError: it is compressed, damaged, not a tar, or cannot be read.
        """
        folder = path.removesuffix(".tar")
        images, archives = len(self.images), len(self.archives)
        try:
            self._enter(self.open_archive(path), f"{folder}/" if path else "", self.home(path))
        except (ArchiveError, OSError) as error:
            images, archives = len(self.images) - images, len(self.archives) - archives
            if images == archives == 0:
                remedy = "copy or download it again" if path else "name a folder of images or an uncompressed tar"
                message = f"is not a tar archive ({error}): {remedy}"
            else:
                contents = f"{images} images" if images else f"{archives} archives in it"
                message = f"the archive is damaged after {contents} ({error}): copy or download it again"
            raise InputError(f"{self.root / path}: {message}") from error
        if path:
            _enter_folders(self.folders, folder)

    def home(self, path: str) -> str:
        """Return the file of the source in which the tar at `path` lies."""
        file = self.archives.get(path)
        return path if file is None or file.archive is None else file.archive

    def _enter(self, archive: Archive, prefix: str, home: str) -> None:
        """List members of `archive`, in the tar `home`, below `prefix`; follow links inside the archive."""
        links: list[tuple[Files, str, str]] = []
        for member in archive.members():
            steps = [step for step in member.name.split("/") if step not in ("", ".")]
            if not steps or ".." in steps or any(map(_is_hidden, steps)):
                continue
            path = prefix + "/".join(steps)
            is_folder = member.kind == "folder"
            _enter_folders(self.folders, path if is_folder else path.rpartition("/")[0])
            if is_folder or (shelf := self.shelf(path, partial(_first_of_member, archive, member))) is None:
                continue
            shelf[path] = in_archive(member, home)
            if member.target:
                links.append((shelf, path, prefix + _target(path.removeprefix(prefix), member)))
        for shelf, path, target in links:
            file = shelf.get(target)
            if file is not None and not file.trouble:
                shelf[path] = file

    def shelf(self, path: str, first_bytes: Callable[[], bytes]) -> Files | None:
        """Return the list that the file belongs to, if any; count files that a person may miss.

        Args:
            first_bytes: called where the name does not say what the file is.
        """
        name = path.rpartition("/")[2].lower()
        extension = name.rpartition(".")[2]
        if extension in EXTENSIONS:
            return self.images
        if extension == "txt":
            return self.texts
        if extension == "tar":
            return self.archives
        if name in _MARKS:
            return self.marks
        if name.endswith(_PACKED):
            self.packed.append(path)
        elif extension in UNREAD or not is_other_kind(name):
            begin = b"" if extension in UNREAD else first_bytes()
            if begins_like_image(begin):
                return self.images
            self.count_unread(begins_like_unread(begin) or extension)
        return None

    def count_unread(self, extension: str) -> None:
        """Count a file with this extension if a person may miss it."""
        if extension in UNREAD:
            self.unread[extension] += 1

    def leave_out(self) -> None:
        """Take the folders that fasttransfer wrote, and those of thumbnails, out of the lists."""
        self.outputs |= {folder for mark in self.marks if (folder := mark.rpartition("/")[0]) and self._is_output(mark)}
        if names := {folder for folder in self.folders if folder.rpartition("/")[2].lower() in _THUMBNAILS}:
            beside = {path.rpartition("/")[0] for path in self.images}
            self.thumbnails = {folder for folder in names if folder.rpartition("/")[0] in beside}
        self._forget(self.outputs | self.thumbnails)
        # A folder that holds nothing else, as `runs`, is no class without images.
        for folder in self.outputs:
            while (folder := folder.rpartition("/")[0]) and not self.has_files(folder):
                self._forget({folder})

    def _forget(self, folders: set[str]) -> None:
        """Take folders and all that lies in them out of the lists."""
        if not folders:
            return
        below = tuple(f"{folder}/" for folder in folders)
        for shelf in (self.images, self.texts, self.archives):
            for path in [path for path in shelf if path.startswith(below)]:
                del shelf[path]
        self.packed = [path for path in self.packed if not path.startswith(below)]
        self.folders = {folder for folder in self.folders if not f"{folder}/".startswith(below)}

    def _is_output(self, mark: str) -> bool:
        folder, _, name = mark.rpartition("/")
        if name == STUDY_FILE:
            return True
        if name == LOCK_FILE:  # of a study that was killed while it prepared its images
            return not self.has_files(folder)
        try:
            return is_manifest(self.read(mark, self.marks[mark]))
        except OSError:
            return False


def read_tree(source: Path) -> Tree:
    """List a folder, following links, or an uncompressed tar.

    Raises:
        InputError: `source` is neither, or cannot be read.
    """
    tree = Tree(source)
    try:
        if source.is_dir():
            cache = cache_folder()
            _walk(tree, "", frozenset(), _identity(os.stat(cache)) if cache.is_dir() else None)
        elif source.is_file():
            tree.mount("")
        else:
            reason = "is neither a folder nor a file" if source.exists() else "does not exist"
            raise InputError(f"{source}: {reason}: name a folder of images or an uncompressed tar")
    except PermissionError as error:
        where = error.filename or source
        raise InputError(f"{where}: cannot be read (permission denied): change its permissions") from error
    except OSError as error:
        where, reason = error.filename or source, os_reason(error)
        raise InputError(f"{where}: cannot be read ({reason}): put it right or name another source") from error
    tree.leave_out()
    return tree


def _is_hidden(name: str) -> bool:
    return (name.startswith(".") and name != LOCK_FILE) or _OF_SYSTEMS.fullmatch(name) is not None


def _walk(tree: Tree, prefix: str, above: frozenset[tuple[int, int]], cache: tuple[int, int] | None) -> None:
    """List all below `prefix` but the folder `cache`; `above` holds those on the way here, so that cyclic links end."""
    above = above | {_identity(os.stat(tree.root / prefix))}
    with os.scandir(tree.root / prefix) as entries:
        for entry in entries:
            path = prefix + entry.name
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                if entry.is_symlink() and _identity(entry.stat()) in above:
                    continue
                tree.folders.add(path)
                if cache is not None and _identity(entry.stat()) == cache:
                    tree.outputs.add(path)
                    continue
                _walk(tree, f"{path}/", above, cache)
            elif (shelf := tree.shelf(path, partial(_first_of_file, entry))) is not None:
                shelf[path] = _on_disk(entry)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _on_disk(entry: os.DirEntry[str]) -> File:
    try:
        status = entry.stat()
    except OSError as error:  # a broken link is listed, so that it is reported and not silently missing
        return File(0, 0, trouble=os_reason(error))
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block for ever
        return File(0, 0, trouble="not a plain file")
    return File(status.st_size, status.st_mtime_ns)


def _first_of_file(entry: os.DirEntry[str]) -> bytes:
    try:
        if not entry.is_file():  # opening a pipe would block for ever
            return b""
        with open(entry.path, "rb", buffering=0) as file:
            return file.read(FIRST_BYTES)
    except OSError:
        return b""


def _first_of_member(archive: Archive, member: ArchiveMember) -> bytes:
    return archive.read(member._replace(size=min(member.size, FIRST_BYTES))) if member.kind == "file" else b""


def _enter_folders(folders: set[str], folder: str) -> None:
    while folder and folder not in folders:
        folders.add(folder)
        folder = folder.rpartition("/")[0]


def in_archive(member: ArchiveMember, home: str) -> File:
    """Return a member of the tar `home` as a `File`."""
    if member.target:
        return File(0, 0, trouble=f"a link to {member.target}, which the archive does not hold")
    if member.kind != "file":
        return File(0, 0, trouble="not a plain file of the archive")
    return File(member.size, member.mtime_ns, member.offset, home)


def _target(path: str, member: ArchiveMember) -> str:
    # A hard link names a member from the archive's root, a symbolic one from where it lies.
    start = path.rpartition("/")[0] if member.kind == "link" else ""
    return os.path.normpath(os.path.join(start, member.target))
