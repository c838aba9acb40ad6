"""List the files of a folder or of an uncompressed tar; a tar is indexed once, then read in place by offset."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fasttransfer.core.errors import InputError, os_reason
from fasttransfer.pipelines.archives import Archive, ArchiveError, ArchiveMember, read_at

EXTENSIONS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "ppm", "pgm", "pbm", "pnm", "tif", "tiff", "gif")
)
"""Extensions (in any case) of the files that are images; the others are ignored."""

# Images to a person, which Pillow alone does not read: ignored too, but counted and reported.
_UNREAD = frozenset(("heic", "heif", "avif", "jxl", "jp2", "svg", "psd", "dng", "cr2", "cr3", "nef", "arw"))

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
    """Folders, images and texts of a source by their paths in it; nothing hidden (".name") is listed."""

    root: Path
    images: Files = field(default_factory=dict)
    texts: Files = field(default_factory=dict)
    archives: Files = field(default_factory=dict)  # tars inside, which `mount` reads
    folders: set[str] = field(default_factory=set)
    packed: list[str] = field(default_factory=list)  # compressed archives inside
    unread: Counter[str] = field(default_factory=Counter)  # extension -> files of a kind that cannot be read

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
            self._enter(self.open_archive(path).members(), f"{folder}/" if path else "", self.home(path))
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

    def _enter(self, members: Iterable[ArchiveMember], prefix: str, home: str) -> None:
        """List members of the tar `home` below `prefix`; follow links inside the archive."""
        links: list[tuple[Files, str, str]] = []
        for member in members:
            steps = [step for step in member.name.split("/") if step not in ("", ".")]
            if not steps or ".." in steps or any(map(_is_hidden, steps)):
                continue
            path = prefix + "/".join(steps)
            is_folder = member.kind == "folder"
            _enter_folders(self.folders, path if is_folder else path.rpartition("/")[0])
            if is_folder or (shelf := self.shelf(path)) is None:
                continue
            shelf[path] = in_archive(member, home)
            if member.target:
                links.append((shelf, path, prefix + _target(path.removeprefix(prefix), member)))
        for shelf, path, target in links:
            file = shelf.get(target)
            if file is not None and not file.trouble:
                shelf[path] = file

    def shelf(self, path: str) -> Files | None:
        """Return the list that the file belongs to, if any; count files that a person may miss."""
        name = path.rpartition("/")[2].lower()
        extension = name.rpartition(".")[2]
        if extension in EXTENSIONS:
            return self.images
        if extension == "txt":
            return self.texts
        if extension == "tar":
            return self.archives
        if name.endswith(_PACKED):
            self.packed.append(path)
        self.count_unread(extension)
        return None

    def count_unread(self, extension: str) -> None:
        """Count a file with this extension if a person may miss it."""
        if extension in _UNREAD:
            self.unread[extension] += 1


def read_tree(source: Path) -> Tree:
    """List a folder, following links, or an uncompressed tar.

    Raises:
        InputError: `source` is neither, or cannot be read.
    """
    tree = Tree(source)
    try:
        if source.is_dir():
            _walk(tree, "", frozenset())
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
    return tree


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _walk(tree: Tree, prefix: str, above: frozenset[tuple[int, int]]) -> None:
    """List all below `prefix`; `above` holds the folders on the way here, so that cyclic links end."""
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
                _walk(tree, f"{path}/", above)
            elif (shelf := tree.shelf(path)) is not None:
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
