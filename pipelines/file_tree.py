"""What files a folder or an uncompressed tar holds; a tar is indexed once, then read in place by offset."""

from __future__ import annotations

import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.archives import Archive, ArchiveError, ArchiveMember, read_at

EXTENSIONS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "ppm", "pgm", "pbm", "pnm", "tif", "tiff", "gif")
)
"""Files whose names end so (in any case) are images; the others are ignored."""

# Images to a person, which Pillow alone does not read: ignored too, but not without saying so.
_UNREAD = frozenset(("heic", "heif", "avif", "jxl", "jp2", "svg", "psd", "dng", "cr2", "cr3", "nef", "arw"))

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


@dataclass(frozen=True, slots=True)
class File:
    """One file: what the folder or the archive says of it, and where its bytes are.

    `archive` is the path, below the source, of the tar that has the bytes at `offset`: "" where the source is that tar,
    None where the file is one of its own. `trouble` says why a file that is listed cannot be read at all (a link to
    nowhere).
    """

    size: int
    mtime_ns: int
    offset: int = 0
    archive: str | None = None
    trouble: str = ""


_PLAIN = File(0, 0)


class Files(Mapping[str, File]):
    """Files by their paths in the order they came, in little memory: there may be more than a million."""

    def __init__(self) -> None:
        self._row: dict[str, int] = {}
        self._facts = array("q")  # of each row: size, time, offset, place in _archives
        self._archives: dict[str | None, int] = {}
        self._archive: list[str | None] = []  # by its place in _archives: there may be thousands
        self._troubles: dict[int, str] = {}

    def __setitem__(self, path: str, file: File) -> None:
        archive = self._archives.setdefault(file.archive, len(self._archives))
        if archive == len(self._archive):
            self._archive.append(file.archive)
        facts = array("q", (file.size, file.mtime_ns, file.offset, archive))
        row = self._row.setdefault(path, len(self._row))
        self._facts[4 * row : 4 * row + 4] = facts
        self._troubles.pop(row, None)
        if file.trouble:
            self._troubles[row] = file.trouble

    def __getitem__(self, path: str) -> File:
        row = self._row[path]
        size, mtime_ns, offset, archive = self._facts[4 * row : 4 * row + 4]
        return File(size, mtime_ns, offset, self._archive[archive], self._troubles.get(row, ""))

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


@dataclass
class Tree:
    """Folders, images and texts of a source by their paths in it; nothing hidden (".name") is listed."""

    root: Path
    images: Files = field(default_factory=Files)
    texts: Files = field(default_factory=Files)
    archives: Files = field(default_factory=Files)  # tars inside, which are looked into when told to
    folders: set[str] = field(default_factory=set)
    packed: list[str] = field(default_factory=list)  # compressed archives inside
    unread: Counter[str] = field(default_factory=Counter)  # extension -> files of a kind that cannot be read

    def subfolders(self, prefix: str) -> set[str]:
        """Names of the folders directly inside `prefix` ("" or "a/b/")."""
        inside = (folder[len(prefix) :] for folder in self.folders if folder.startswith(prefix))
        return {name for name in inside if name and "/" not in name}

    def fills(self, folder: str) -> bool:
        """Whether anything that can be read lies in the folder, at any depth."""
        return any(path.startswith(f"{folder}/") for shelf in (self.images, self.archives) for path in shelf)

    def read(self, path: str, file: File) -> bytes:
        """The bytes of a file; safe to call from any number of threads.

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
        """The text at `path`.

        Raises:
            InputError: it cannot be read, or is not UTF-8.
        """
        try:
            return self.read(path, self.texts.get(path, _PLAIN)).decode("utf-8-sig")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(f"{self.root}: {path} cannot be read ({reason}): put it right") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{self.root}: {path} is not UTF-8 text ({error}): save it as UTF-8") from error

    def open_archive(self, path: str) -> Archive:
        """The tar at `path` of the source, "" for the source itself, which may lie in another tar.

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
            reason = (error.strerror or str(error)).lower()
            raise InputError(f"{what}: cannot be read ({reason}): put it right or remove it") from error
        if remedy:
            raise InputError(f"{what}: is compressed, but archives are read in place: {remedy}")
        return archive

    def mount(self, path: str) -> None:
        """Enters what the tar at `path` holds as if it were a folder called so without ".tar"; "" is the source itself.

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
                held = f"{images} images" if images else f"{archives} archives in it"
                message = f"the archive is damaged after {held} ({error}): copy or download it again"
            raise InputError(f"{self.root / path}: {message}") from error
        if path:
            _enter_folders(self.folders, folder)

    def home(self, path: str) -> str:
        """The file of the source in which the tar at `path` lies."""
        file = self.archives.get(path)
        return path if file is None or file.archive is None else file.archive

    def _enter(self, members: Iterable[ArchiveMember], prefix: str, home: str) -> None:
        """Enters members of the tar `home` below `prefix`. Links are followed inside the archive."""
        links: list[tuple[Files, str, str]] = []
        for member in members:
            steps = [step for step in member.name.split("/") if step not in ("", ".")]
            if not steps or ".." in steps or any(map(_hidden, steps)):
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
        """Where the file is entered, if anywhere; counts those that a person may miss."""
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
        """Counts a file of this kind if it is one that a person may miss."""
        if extension in _UNREAD:
            self.unread[extension] += 1


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
            tree.mount("")
        else:
            reason = "is neither a folder nor a file" if source.exists() else "does not exist"
            raise InputError(f"{source}: {reason}: name a folder of images or an uncompressed tar")
    except PermissionError as error:
        where = error.filename or source
        raise InputError(f"{where}: cannot be read (permission denied): change its permissions") from error
    except OSError as error:
        where, reason = error.filename or source, (error.strerror or str(error)).lower()
        raise InputError(f"{where}: cannot be read ({reason}): put it right or name another source") from error
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
            elif (shelf := tree.shelf(path)) is not None:
                shelf[path] = _on_disk(entry)


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    found = entry.stat()
    return found.st_dev, found.st_ino


def _on_disk(entry: os.DirEntry[str]) -> File:
    try:
        found = entry.stat()
    except OSError as error:  # a link to nowhere is listed, so that it is told and not silently missing
        return File(0, 0, trouble=(error.strerror or str(error)).lower())
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would be to wait for ever
        return File(0, 0, trouble="not a plain file")
    return File(found.st_size, found.st_mtime_ns)


def _enter_folders(folders: set[str], folder: str) -> None:
    while folder and folder not in folders:
        folders.add(folder)
        folder = folder.rpartition("/")[0]


def in_archive(member: ArchiveMember, home: str) -> File:
    """A member of the tar `home`, in the words of `File`."""
    if member.target:
        return File(0, 0, trouble=f"a link to {member.target}, which the archive does not hold")
    if member.kind != "file":
        return File(0, 0, trouble="not a plain file of the archive")
    return File(member.size, member.mtime_ns, member.offset, home)


def _target(path: str, member: ArchiveMember) -> str:
    # A hard link names a member from the archive's root, a symbolic one from where it lies.
    start = path.rpartition("/")[0] if member.kind == "link" else ""
    return os.path.normpath(os.path.join(start, member.target))
