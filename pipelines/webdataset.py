"""The layout of tar shards by WebDataset's convention: members `<key>.jpg` (or another kind) and `<key>.cls`.

A key is a member's path up to the first dot of its name; up to the last dot where an image and a `.cls` agree in all
before it (`a.v2.jpg` and `a.v2.cls`). `.cls` holds the number of the class in ASCII, or its name;
`classes.txt` or `classnames.txt` beside the shards names the numbers, one per line from 0 on. Without it the numbers,
zero-padded so that they sort, are the names. Other members of a key (`.json`, `.txt`) are ignored.

A shard is for training or for validation by the folder it lies in (`train/`, `val/`) or by its name
(`train-000000.tar`, `birds-val-000000.tar`); where none says so, all are for training.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from fasttransfer.core.errors import InputError, os_reason
from fasttransfer.pipelines.archives import Archive, ArchiveError
from fasttransfer.pipelines.file_kinds import EXTENSIONS
from fasttransfer.pipelines.file_tree import Tree, in_archive

CLASS_LISTS = ("classes.txt", "classnames.txt")

_PART = re.compile(r"(?:^|[^a-z])(train|val|test)(?:ing|id|idation)?(?=[^a-z]|$)")
_PROBED = 64  # members of an archive that are read to tell whether it is a shard
_MOST = 1000  # bytes of a class's name at most

Label = int | str


class LabelledImages(NamedTuple):
    """The images of some shards by class; `val` is None where no shard is for validation."""

    train: dict[str, list[str]]
    val: dict[str, list[str]] | None
    notes: list[str]


def is_shard(source: Path) -> bool:
    """Return whether a source is a single shard."""
    try:
        return source.is_file() and _has_labels(Archive(source))
    except OSError:
        return False


def shards(tree: Tree) -> list[str]:
    """Return the paths of the shards of a folder; none where images lie in folders, or tars have no classes.

    Raises:
        InputError: some of them are compressed.
    """
    beside = {path.rpartition("/")[0] for path in tree.archives}
    if any(path.rpartition("/")[0] not in beside for path in tree.images):
        return []
    paths = sorted(tree.archives, key=os.fsencode)
    if not any(_has_labels(tree.open_archive(path)) for path in paths):
        return []
    if tree.packed:
        raise InputError(
            f"{tree.root / min(tree.packed)}: is compressed ({len(tree.packed)} such here), but shards are read in "
            "place: unpack it to a .tar"
        )
    return paths


def read(tree: Tree, paths: Sequence[str]) -> LabelledImages:
    """List the images of the shards `paths` in `tree`, and sort them into classes.

    Raises:
        InputError: a damaged shard, an image without a class, numbers and names mixed.
    """
    part_of = _parts(tree, paths)
    by_label: dict[str, dict[Label, list[str]]] = {"train": {}, "val": {}}
    example: dict[type, str] = {}
    for path, part in part_of.items():
        for image, label in _read_shard(tree, path).items():
            by_label[part].setdefault(label, []).append(image)
            example.setdefault(type(label), image)
    if len(example) > 1:
        raise InputError(
            f"{tree.root}: the .cls of {example[int]} is a number, that of {example[str]} is not: "
            "write numbers everywhere, or names everywhere"
        )
    names = _names(tree, {label for labels in by_label.values() for label in labels})
    named = {part: {names[label]: images for label, images in by_label[part].items()} for part in by_label}
    left = sorted(set(paths) - part_of.keys())
    notes = [f"test shards left out: {', '.join(left[:3])}{' …' if left[3:] else ''}"] if left else []
    return LabelledImages(named["train"], named["val"] if "val" in part_of.values() else None, notes)


def _has_labels(archive: Archive) -> bool:
    try:
        return any(member.name.lower().endswith(".cls") for member in islice(archive.members(), _PROBED))
    except ArchiveError:
        return False


def _key_of(name: str) -> tuple[str, str]:
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _parts(tree: Tree, paths: Sequence[str]) -> dict[str, str]:
    """Return shard -> "train" or "val", without the shards for testing."""
    names = {path: _part_of(path) for path in paths}
    if not any(names.values()):
        return dict.fromkeys(paths, "train")
    if unnamed := sorted(path for path, part in names.items() if not part):
        raise InputError(
            f"{tree.root}: {unnamed[0]} says neither train nor val while other shards do: rename it or move it "
            "elsewhere"
        )
    parts = {path: part for path, part in names.items() if part != "test"}
    if "train" not in parts.values():
        raise InputError(f"{tree.root}: none of the {len(paths)} shards is for training: name them train-000000.tar …")
    return parts


def _part_of(path: str) -> str:
    """Return the part in a shard's name, else in its nearest folder's; "" where there is none."""
    parts = [match[1] for step in path.lower().removesuffix(".tar").split("/") for match in _PART.finditer(step)]
    return parts[-1] if parts else ""


def _read_shard(tree: Tree, shard: str) -> dict[str, Label]:
    """List the images of one shard in `tree`; return path -> label."""
    here = tree.root / shard
    archive = tree.open_archive(shard)
    prefix, home = (f"{shard}/" if shard else ""), tree.home(shard)
    labels: dict[str, Label] = {}
    images: dict[str, str] = {}
    dotted: dict[str, str] = {}  # key with dots -> its image
    try:
        for member in archive.members():
            key, extension = _key_of(member.name)
            if member.kind == "folder" or key.rpartition("/")[2] == "":
                continue
            last = extension.rpartition(".")[2]
            is_dotted = last != extension and (last == "cls" or last in EXTENSIONS)
            if is_dotted:
                key, extension = member.name.removeprefix("./")[: -len(last) - 1], last
            if extension == "cls":
                if key in labels:
                    raise InputError(f"{here}: {key}.cls is there twice: remove one of them")
                labels[key] = _label(here, key, archive.read(member) if member.size <= _MOST else b"")
            elif extension in EXTENSIONS:
                shelf = dotted if is_dotted else images
                if key in shelf:
                    raise InputError(f"{here}: key {key} has two images ({member.name} is one): give each a key")
                path = shelf[key] = prefix + member.name.removeprefix("./")
                tree.images[path] = in_archive(member, home)
            else:
                tree.count_unread(extension)
    except ArchiveError as error:
        raise InputError(
            f"{here}: the archive is damaged after {len(images)} images ({error}): copy or download it again"
        ) from error
    except OSError as error:
        raise InputError(f"{here}: cannot be read ({os_reason(error)}): put it right") from error
    for key, path in dotted.items():
        if key in labels:
            images[key] = path
        elif (short := _key_of(key)[0]) in images:
            del tree.images[path]  # a mask or the like of the key's image, in a member such as a.seg.png
        else:
            raise InputError(
                f"{here}: {path.removeprefix(prefix)} has no {key}.cls, and a key ends at the first dot, but no image "
                f"is called {short}.{path.rpartition('.')[2]}: add the .cls or rename the image"
            )
    if lacking := sorted(images.keys() - labels.keys()):
        raise InputError(f"{here}: {images[lacking[0]].removeprefix(prefix)} has no {lacking[0]}.cls: add it")
    # A member such as a.fine.cls belongs to the key of a.jpg.
    if alone := sorted(key for key in labels.keys() - images.keys() if _key_of(key)[0] not in images):
        kinds = " ".join(sorted(EXTENSIONS))
        raise InputError(f"{here}: {alone[0]}.cls has no image ({kinds}) of its key: add it or remove the key")
    return {path: labels[key] for key, path in images.items()}


def _label(shard: Path, key: str, data: bytes) -> Label:
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise InputError(f"{shard}: {key}.cls is not UTF-8 text: write the class's number or name") from None
    if not text or not text.isprintable():
        raise InputError(f"{shard}: {key}.cls holds no class: write its number or name, on one line")
    return int(text) if text.isascii() and text.isdigit() else text


def _names(tree: Tree, labels: set[Label]) -> Mapping[Label, str]:
    """Return label -> the name of its class."""
    numbers = [label for label in labels if isinstance(label, int)]
    if not numbers:
        return {label: str(label) for label in labels}
    class_list = _read_class_list(tree)
    if class_list is None:
        width = len(str(max(numbers)))
        return {number: f"{number:0{width}d}" for number in numbers}
    path, names = class_list
    if max(numbers) >= len(names):
        raise InputError(
            f"{tree.root}: a .cls says {max(numbers)}, but {path} has {len(names)} lines, for 0 to {len(names) - 1}: "
            "add the names that lack"
        )
    return {number: names[number] for number in numbers}


def _read_class_list(tree: Tree) -> tuple[str, list[str]] | None:
    """Return the path and the names of the class list beside the shards, the one nearest to the top."""
    if tree.root.is_file():
        beside = ((tree.root.parent / name).resolve() for name in CLASS_LISTS)
        paths = [str(path) for path in beside if path.is_file()]
    else:
        paths = [path for path in tree.texts if path.rpartition("/")[2] in CLASS_LISTS]
    if not paths:
        return None
    path = min(paths, key=lambda each: (each.count("/"), each))
    names = [line.strip() for line in tree.read_text(path).splitlines()]
    while names and not names[-1]:
        names.pop()
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times != 1:
        what = f"names {name!r} {times} times" if times else "is empty"
        raise InputError(f"{tree.root}: {path} {what}: give each class a line of its own")
    return path, names
