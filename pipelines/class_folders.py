"""Sort images into the classes whose folders they lie in, and check that the folders are those of classes."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.file_kinds import EXTENSIONS
from fasttransfer.pipelines.file_tree import Tree
from fasttransfer.pipelines.parts import part_of

ByClass = dict[str, list[str]]
"""Class -> paths of its images."""


def sort_by_class(tree: Tree, prefix: str) -> tuple[ByClass, list[str]]:
    """Return class folder -> its images at any depth, and the images that lie in none."""
    by_class: ByClass = {name: [] for name in tree.subfolders(prefix)}
    strays: list[str] = []
    for path in tree.images:
        if path.startswith(prefix):
            name, inside, _ = path[len(prefix) :].partition("/")
            (by_class[name] if inside else strays).append(path)
    return by_class, sorted(strays, key=os.fsencode)


def check_folders(tree: Tree, prefix: str, train: ByClass, strays: Sequence[str]) -> list[str]:
    """Check that the folders below `prefix` are those of classes; return notes about folders inside them.

    Args:
        train: class -> its images; strays: images in no class.

    Raises:
        InputError: there are none, or an empty one, or they hold parts or classes of their own.
    """
    where = f"{tree.root}: {prefix}" if prefix else f"{tree.root}:"
    if not train:
        outside = f" but {count(strays)} outside any" if strays else ""
        raise InputError(f"{where} holds no class folders{outside}: lay the images out as <class>/<image>")
    if empty := sorted((name for name, paths in train.items() if not paths), key=os.fsencode):
        kinds = " ".join(sorted(EXTENSIONS))
        raise InputError(f"{where} no image ({kinds}) in class {few(empty)}: add some or remove the folder")
    check_classes(where, train)
    inside = {name: _count_inside(paths, f"{prefix}{name}/") for name, paths in sorted(train.items())}
    for name, counts in inside.items():
        if len(parts := [folder for folder in sorted(counts) if part_of(folder)]) > 1:
            raise InputError(
                f"{where} class {name} has the parts {', '.join(parts)} inside: lay the images out as "
                "train/<class>/<image> and val/<class>/<image>"
            )
    folders = [f"{name}/{folder}" for name, counts in inside.items() for folder in sorted(counts) if folder]
    names = {path.rpartition("/")[2] for path in folders}
    # Classes are called differently everywhere; folders such as `images` or `left` and `right` recur.
    if len(names) == len(folders) and all("" not in counts and len(counts) > 1 for counts in inside.values()):
        raise InputError(
            f"{where} class {min(inside)} and the others hold no images but folders that look like classes "
            f"({few(folders)}): move those up if they are the classes, else their images"
        )
    if not folders or len(names) == 1 == len(set().union(*inside.values())):  # as in Tiny-ImageNet
        return []
    total = sum(counts.total() - counts[""] for counts in inside.values())
    some = few([f"{prefix}{path}" for path in folders])
    return [f"{total:,} images lie in folders inside class folders ({some}) and count as images of those classes"]


def _count_inside(paths: Iterable[str], prefix: str) -> Counter[str]:
    """Return folder directly inside `prefix` -> images in it at any depth; "" -> images that lie in none."""
    rests = (path[len(prefix) :].partition("/") for path in paths)
    return Counter(first if slash else "" for first, slash, _ in rests)


def check_classes(where: str, classes: Collection[str]) -> None:
    """Check the names of the classes.

    Raises:
        InputError: there is one only, or two of them look alike.
    """
    by_look: dict[str, str] = {}
    for name in classes:
        if by_look.setdefault(compose_name(name), name) != name:
            raise InputError(f"{where} class {name} is there in two Unicode spellings: merge the two folders")
    if len(by_look) == 1:
        raise InputError(f"{where} holds one class only ({min(classes)}): a study needs at least four, two per task")


def match_classes(where: str, val: ByClass, classes: Collection[str]) -> ByClass:
    """Return the validation part with its classes spelled as those of the training part, and check them.

    Unicode has two spellings of é and its like; macOS and other systems change one into the other.

    Raises:
        InputError: it is empty, has another class, or lacks one.
    """
    spelled = {compose_name(name): name for name in classes}
    matched: ByClass = {}
    for name, paths in val.items():
        matched.setdefault(spelled.get(compose_name(name), name), []).extend(paths)
    if not any(matched.values()):
        raise InputError(f"{where} holds no images: fill it, or remove it to hold out a tenth of train")
    if extra := sorted(matched.keys() - set(classes), key=os.fsencode):
        raise InputError(f"{where} has class {few(extra)}, which train has not: add or remove it")
    if lacking := sorted((name for name in classes if not matched.get(name)), key=os.fsencode):
        raise InputError(f"{where} has no image of class {few(lacking)}: add some or remove the class")
    return matched


def compose_name(name: str) -> str:
    """Return the name with letters and their accents composed: equal for names that look alike."""
    return unicodedata.normalize("NFC", name)


def count(paths: Sequence[str]) -> str:
    """Return "1 image", "2 images" …"""
    return f"{len(paths):,} image{'' if len(paths) == 1 else 's'}"


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
