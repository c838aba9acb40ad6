"""What files a folder or an uncompressed tar holds; a tar is indexed once, then read in place by offset."""

from __future__ import annotations

import os
import tarfile
import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fasttransfer.errors import InputError

EXTENSIONS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "ppm", "pgm", "pbm", "pnm", "tif", "tiff", "gif")
)
"""Files whose names end so (in any case) are pictures; the others are ignored."""

# Pictures to a person, which Pillow alone does not read: ignored too, but not without saying so.
_UNREAD = frozenset(("heic", "heif", "avif", "jxl", "jp2", "svg", "psd", "dng", "cr2", "cr3", "nef", "arw"))

_PACKED = {  # the first bytes of what people take for a plain tar, and how it becomes one
    b"\x1f\x8b": "unpack it with gunzip",
    b"BZh": "unpack it with bunzip2",
    b"\xfd7zXZ\x00": "unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "unpack it with unzstd",
    b"PK\x03\x04": "unpack it with unzip and name the folder",
}


@dataclass(frozen=True, slots=True)
class File:
    """One file: what the folder or the archive says of it, and where its bytes start in the archive.

    `trouble` says why a file that is listed cannot be read at all (a link to nowhere).
    """

    size: int
    mtime_ns: int
    offset: int = 0
    trouble: str = ""


@dataclass
class Tree:
    """Folders, pictures and texts of a source by their paths in it; nothing hidden (".name") is listed."""

    root: Path
    pictures: dict[str, File] = field(default_factory=dict)
    texts: dict[str, File] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    archives: list[str] = field(default_factory=list)  # names of tars inside: somebody unpacked half of it
    unread: Counter[str] = field(default_factory=Counter)  # extension -> files of a kind that cannot be read
    archive: Archive | None = None

    def subfolders(self, prefix: str) -> set[str]:
        """Names of the folders directly inside `prefix` ("" or "a/b/")."""
        inside = (folder[len(prefix) :] for folder in self.folders if folder.startswith(prefix))
        return {name for name in inside if name and "/" not in name}

    def read(self, path: str, file: File) -> bytes:
        """The bytes of a file; safe to call from any number of threads.

        Raises:
            OSError: it cannot be read.
        """
        if file.trouble:
            raise OSError(file.trouble)
        if self.archive is not None:
            return self.archive.read(file)
        with open(self.root / path, "rb") as opened:
            return opened.read()

    def shelf(self, name: str) -> dict[str, File] | None:
        """Where a file of this name is entered, if anywhere; counts those that a person may miss."""
        extension = name.rpartition(".")[2].lower()
        if extension in EXTENSIONS:
            return self.pictures
        if extension == "txt":
            return self.texts
        if extension == "tar":
            self.archives.append(name)
        elif extension in _UNREAD:
            self.unread[extension] += 1
        return None


class Archive:
    """An uncompressed tar, open for reading at any offset for as long as this lives."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def read(self, file: File) -> bytes:
        """The bytes of one member."""
        pieces, start, left = [], file.offset, file.size
        while left > 0:
            piece = os.pread(self._handle, left, start)
            if not piece:
                raise OSError(f"the archive ends {left} bytes too early")
            pieces.append(piece)
            start, left = start + len(piece), left - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_tree(source: Path) -> Tree:
    """Lists a folder, following links, or an uncompressed tar.

    Raises:
        InputError: there is neither at `source`, or it cannot be read.
    """
    tree = Tree(source)
    try:
        if source.is_dir():
            _walk(tree, "", frozenset())
        elif source.is_file():
            _refuse_packed(source)
            _index(tree)
        else:
            reason = "is neither a folder nor a file" if source.exists() else "does not exist"
            raise InputError(f"{source}: {reason}: name a folder of pictures or an uncompressed tar")
    except PermissionError as error:
        where = error.filename or source
        raise InputError(f"{where}: cannot be read (permission denied): change its permissions") from error
    return tree


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _walk(tree: Tree, prefix: str, above: frozenset[tuple[int, int]]) -> None:
    """Enters all below `prefix`; `above` holds the folders on the way here, so that links in a ring end."""
    here = os.stat(tree.root / prefix)
    above = above | {(here.st_dev, here.st_ino)}
    with os.scandir(tree.root / prefix) as entries:
        for entry in entries:
            path = prefix + entry.name
            if _hidden(entry.name):
                continue
            if entry.is_dir():
                if entry.is_symlink() and _identity(entry) in above:
                    continue
                tree.folders.add(path)
                _walk(tree, f"{path}/", above)
            elif (shelf := tree.shelf(entry.name)) is not None:
                shelf[path] = _on_disk(entry)


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    found = entry.stat()
    return found.st_dev, found.st_ino


def _on_disk(entry: os.DirEntry[str]) -> File:
    try:
        found = entry.stat()
    except OSError as error:  # a link to nowhere is listed, so that it is told and not silently missing
        return File(0, 0, trouble=(error.strerror or str(error)).lower())
    return File(found.st_size, found.st_mtime_ns)


def _refuse_packed(source: Path) -> None:
    with open(source, "rb") as file:
        start = file.read(8)
    for magic, remedy in _PACKED.items():
        if start.startswith(magic):
            raise InputError(f"{source}: is compressed, but archives are read in place: {remedy}")


def _index(tree: Tree) -> None:
    """Enters the members of a tar. Links are followed inside the archive."""
    links: dict[str, str] = {}
    try:
        with tarfile.open(tree.root, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else a million stay, a kilobyte each
                steps = [step for step in member.name.split("/") if step not in ("", ".")]
                if not steps or ".." in steps or any(map(_hidden, steps)):
                    continue
                path = "/".join(steps)
                _enter_folders(tree.folders, path if member.isdir() else path.rpartition("/")[0])
                if member.isdir() or (shelf := tree.shelf(steps[-1])) is None:
                    continue
                shelf[path] = _in_archive(member)
                if member.islnk() or member.issym():
                    links[path] = _target(path, member)
    except tarfile.TarError as error:
        held = len(tree.pictures)
        if held == 0:
            message = "is not a tar archive: name a folder of pictures or an uncompressed tar"
        else:
            message = f"the archive is damaged after {held} pictures ({error}): copy or download it again"
        raise InputError(f"{tree.root}: {message}") from error
    for path, target in links.items():
        file = tree.pictures.get(target) or tree.texts.get(target)
        if file is not None and not file.trouble:
            (tree.pictures if path in tree.pictures else tree.texts)[path] = file
    tree.archive = Archive(tree.root)


def _enter_folders(folders: set[str], folder: str) -> None:
    while folder and folder not in folders:
        folders.add(folder)
        folder = folder.rpartition("/")[0]


def _in_archive(member: tarfile.TarInfo) -> File:
    if member.islnk() or member.issym():
        return File(0, 0, trouble=f"a link to {member.linkname}, which the archive does not hold")
    if not member.isreg() or member.issparse():
        return File(0, 0, trouble="not a plain file of the archive")
    return File(member.size, int(member.mtime * 1e9), member.offset_data)


def _target(path: str, member: tarfile.TarInfo) -> str:
    # A hard link names a member from the archive's root, a symbolic one from where it lies.
    start = path.rpartition("/")[0] if member.issym() else ""
    return os.path.normpath(os.path.join(start, member.linkname))
