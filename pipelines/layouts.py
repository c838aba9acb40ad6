"""List the classes of a source and the images of each: ImageFolder, Tiny-ImageNet, ILSVRC12 or WebDataset.

Nothing is decoded or unpacked here. Everything is sorted by the bytes of its name, so that labels and order never
depend on the file system.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import STUDY_FILE
from fasttransfer.pipelines import webdataset
from fasttransfer.pipelines.class_folders import (
    ByClass,
    check_classes,
    check_folders,
    count,
    few,
    match_classes,
    sort_by_class,
)
from fasttransfer.pipelines.file_tree import Tree, read_tree
from fasttransfer.pipelines.ilsvrc12 import ilsvrc12, ilsvrc12_val_labels
from fasttransfer.pipelines.parts import Parts, find_parts, part_of
from fasttransfer.pipelines.store import is_store

_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")  # as published
_HELD_OUT = 10  # one image in ten


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image; `path` is relative to the source, `label` indexes `Listing.classes`."""

    path: str
    label: int


@dataclass(frozen=True)
class Listing:
    """The images of a source; both parts are sorted by label, then by the bytes of the path."""

    source: Path
    layout: str  # "image-folder" | "tiny-imagenet" | "ilsvrc12" | "webdataset"
    classes: tuple[str, ...]
    words: dict[str, str]  # class -> words for people; may lack classes
    train: tuple[ImageFile, ...]
    val: tuple[ImageFile, ...]
    held_out: bool  # val was cut from train because the source has none
    notes: tuple[str, ...] = ()  # for the user: what was left out, and by which rule
    tree: Tree = field(default_factory=lambda: Tree(Path()), repr=False, compare=False)

    @property
    def parts(self) -> dict[str, tuple[ImageFile, ...]]:
        """The images of "train" and "val"."""
        return {"train": self.train, "val": self.val}

    @property
    def labels(self) -> dict[str, NDArray[np.int64]]:
        """The labels of the images of each part."""
        return {part: np.array([each.label for each in images], np.int64) for part, images in self.parts.items()}

    def read(self, image: ImageFile) -> bytes:
        """Return the bytes of the image's file. Thread-safe.

        Raises:
            OSError: the file cannot be read.
        """
        return self.tree.read(image.path, self.tree.images[image.path])


def list_images(source: Path) -> Listing:
    """List the images of a folder or of an uncompressed tar that has one of these layouts.

    * ImageFolder: `train/<class>/…` and `val/<class>/…`, or `<class>/…` directly.
    * Tiny-ImageNet: `train/<wnid>/images/…`, `val/images/…` with `val/val_annotations.txt`, `words.txt`.
    * ILSVRC12: `train/<wnid>/…`, and `val/<wnid>/…` or `val/ILSVRC2012_val_00000001.JPEG`, `_00000002` … in the
      published order. Or as published: `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`, or tars
      `<wnid>.tar` instead of folders `<wnid>`; they are read in place.
    * WebDataset: tar shards, or a single one, see `webdataset`.

    Parts may have other usual names, in any case (`Train`, `valid`, `val_set`); a test part is left out and noted. All
    of it may lie inside other folders, as in `ILSVRC/Data/CLS-LOC`. Folders that fasttransfer itself wrote into the
    source are left out and noted.

    Without `val` a tenth of each class's images, at least one, is held out of training: those whose paths from the
    class on have the smallest XXH3 digests. A class with a single image keeps it for training and has none in
    validation, which `Store.require_both_parts` refuses where it matters.

    Raises:
        InputError: no such source, no or one class, an empty class, parts that do not fit each other.
    """
    source = Path(source)
    if is_store(source):
        raise InputError(f"{source}: is a prepared store, not a source of images: use it as it is, or name its images")
    if webdataset.is_shard(source):
        return _of_shards(Tree(source), [""])
    tree = read_tree(source)
    if STUDY_FILE in tree.marks:
        raise InputError(f"{source}: is the folder of a study, not a source of images: name its images")
    mounted, notes = _mount_published(tree)
    if not mounted and (shards := webdataset.shards(tree)):
        return _of_shards(tree, shards)
    return _of_folders(tree, mounted, notes)


def _of_shards(tree: Tree, shards: Sequence[str]) -> Listing:
    train, val, notes = webdataset.read(tree, shards)
    where = f"{tree.root}:"
    check_classes(where, train)
    if val is not None:
        val = match_classes(f"{where} the validation shards", val, train)
    return _listing(tree, "webdataset", "", "", train, val, [*notes, *_left_out(tree)])


def _of_folders(tree: Tree, mounted: bool, notes: list[str]) -> Listing:
    """Return the listing of class folders; `mounted` says that some of them are ILSVRC12's archives."""
    if not tree.images and (tree.archives or tree.packed):
        names = sorted([*tree.archives, *tree.packed], key=os.fsencode)
        raise InputError(
            f"{tree.root}: holds no images but archives ({few(names)}): unpack each into a folder named after its class"
        )
    parts = find_parts(tree, _wnids())
    prefix = parts.prefix(parts.train)
    train, strays = sort_by_class(tree, prefix)
    train = {name: paths for name, paths in train.items() if parts.train or name not in (parts.val, *parts.test)}
    notes += check_folders(tree, prefix, train, strays)
    layout = _layout(tree, parts, train) if parts.train or parts.val or mounted else "image-folder"
    if strays:
        notes.append(f"{count(strays)} outside the class folders left out ({few(strays)})")
    notes += [*_left_out(tree), *_outside_parts(tree, parts)]
    val = None
    if parts.val is not None:
        val, more = _validation(tree, parts.prefix(parts.val), layout, train)
        notes += more
        val = match_classes(f"{tree.root}: {parts.prefix(parts.val)}", val, train)
    return _listing(tree, layout, parts.base, prefix, train, val, notes)


def _listing(
    tree: Tree, layout: str, base: str, prefix: str, train: ByClass, val: ByClass | None, notes: Sequence[str]
) -> Listing:
    """Return the listing; without `val` hold out some of `train`, chosen by the paths from `prefix` on."""
    held_out = val is None
    if val is None:
        train, val = _hold_out(prefix, train)
        notes = [*notes, _held_out_note(val)]
    classes = tuple(sorted(train, key=os.fsencode))
    return Listing(
        source=tree.root,
        layout=layout,
        classes=classes,
        words=_words(tree, base, classes),
        train=_part(classes, train),
        val=_part(classes, val),
        held_out=held_out,
        notes=tuple(notes),
        tree=tree,
    )


def _mount_published(tree: Tree) -> tuple[bool, list[str]]:
    """List ILSVRC12's archives as the folders that they would be unpacked to.

    Returns:
        Whether there are any, and notes. Archives that lie unpacked beside are left out, and noted.
    """
    mounted, unpacked = False, []
    for path in sorted(tree.archives, key=os.fsencode):
        folder, slash, name = path.rpartition("/")
        if name in _ARCHIVES:
            beside, part = tree.subfolders(folder + slash), part_of(name.removesuffix(".tar"))
            if any(tree.has_files(folder + slash + other) for other in beside if part_of(other) == part):
                unpacked.append(path)
            else:
                tree.mount(path)
                mounted = True
    for path in sorted(tree.archives, key=os.fsencode):
        if path.rpartition("/")[2].removesuffix(".tar") in _wnids():
            if path.removesuffix(".tar") in tree.folders:
                unpacked.append(path)
            else:
                tree.mount(path)
                mounted = True
    return mounted, [f"archives left out because they lie unpacked beside: {few(unpacked)}"] if unpacked else []


def _left_out(tree: Tree) -> list[str]:
    """Return notes about what is no image of the source, though a person might think so."""
    kinds = ", ".join(f"{number} .{name}" for name, number in sorted(tree.unread.items()))
    return [
        f"{what}: {names}"
        for what, names in (
            ("files of kinds that cannot be read left out", kinds),
            ("folders that fasttransfer wrote left out", few(sorted(tree.outputs))),
            ("folders of thumbnails left out", few(sorted(tree.thumbnails))),
        )
        if names
    ]


def _outside_parts(tree: Tree, parts: Parts) -> list[str]:
    """Return notes about the test part and about images that lie in no part."""
    notes = [f"test part left out: {few(parts.test)}"] if parts.test else []
    if parts.train is not None:
        known = tuple(parts.prefix(name) for name in (parts.train, parts.val, *parts.test) if name is not None)
        if others := sorted((path for path in tree.images if not path.startswith(known)), key=os.fsencode):
            notes.append(f"{count(others)} outside the parts left out ({few(others)})")
    return notes


@cache
def _wnids() -> frozenset[str]:
    return frozenset(synset.wnid for synset in ilsvrc12())


def _layout(tree: Tree, parts: Parts, classes: Iterable[str]) -> str:
    base, annotated = parts.base, f"{parts.prefix(parts.val)}val_annotations.txt" in tree.texts
    if annotated or f"{base}wnids.txt" in tree.texts:
        return "tiny-imagenet"
    return "ilsvrc12" if _wnids().issuperset(classes) else "image-folder"


def _words(tree: Tree, base: str, classes: Sequence[str]) -> dict[str, str]:
    """Return the words of the source for its classes (Tiny-ImageNet's `words.txt`), else those of ILSVRC12."""
    words = {synset.wnid: synset.words for synset in ilsvrc12()}
    path = f"{base}words.txt"
    if path in tree.texts:
        pairs = (line.split("\t", 1) for line in tree.read_text(path).splitlines())
        words |= {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
    return {name: words[name] for name in classes if name in words}


def _validation(tree: Tree, prefix: str, layout: str, classes: Iterable[str]) -> tuple[ByClass, list[str]]:
    """Return the validation part by class, and notes."""
    val, flat = sort_by_class(tree, prefix)
    # Some sort Tiny-ImageNet's validation part into class folders and leave the annotations where they were.
    is_sorted = any(paths for name, paths in val.items() if name != "images")
    if f"{prefix}val_annotations.txt" in tree.texts and not is_sorted:
        return _annotated(tree, prefix), []
    val = {name: paths for name, paths in val.items() if paths}
    if not flat:
        return val, []
    if layout == "ilsvrc12" and not val:
        return _published(tree, flat, classes)
    where = "beside its class folders" if val else "but has no class folders"
    raise InputError(
        f"{tree.root}: {prefix} holds {count(flat)} ({few(flat)}) {where}: sort them into {prefix}<class>/"
    )


def _annotated(tree: Tree, prefix: str) -> ByClass:
    """Return Tiny-ImageNet's validation part: lines "<file> tab <wnid> tab <box>" name the files of `val/images`."""
    annotations = f"{prefix}val_annotations.txt"
    val: ByClass = {}
    paths = set()
    for number, line in enumerate(tree.read_text(annotations).splitlines(), 1):
        if not line.strip():
            continue
        file, name = [*line.split("\t"), ""][:2]
        path = f"{prefix}images/{file}"
        line_of = f"{tree.root}: line {number} of {annotations}"
        if not name.strip():
            raise InputError(f"{line_of} is not <file> tab <class>: correct it")
        if path not in tree.images:
            raise InputError(f"{line_of} names {file}, which {prefix}images does not have: unpack it again")
        if path in paths:
            raise InputError(f"{line_of} names {file} for the second time: remove one of the lines")
        paths.add(path)
        val.setdefault(name.strip(), []).append(path)
    if extra := sorted(path for path in tree.images if path.startswith(prefix) and path not in paths):
        raise InputError(
            f"{tree.root}: {annotations} does not name {count(extra)} that {prefix} has ({few(extra)}): "
            "add the lines or remove the images"
        )
    return val


def _published(tree: Tree, flat: Sequence[str], classes: Iterable[str]) -> tuple[ByClass, list[str]]:
    """Return ILSVRC12's flat validation part, in which an image's number says its class, and notes.

    Images of classes that train does not have are left out: a subset of the classes looks like that.
    """
    labels, synsets = ilsvrc12_val_labels(), ilsvrc12()
    val: ByClass = {name: [] for name in classes}
    others = 0
    for path in flat:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.jpe?g", path.rpartition("/")[2], re.IGNORECASE)
        if match is None or not 1 <= int(match[1]) <= len(labels):
            raise InputError(
                f"{tree.root}: {path} is not one of ILSVRC2012_val_00000001.JPEG to _{len(labels):08d}.JPEG: "
                "remove it, or sort val into class folders"
            )
        name = synsets[labels[int(match[1]) - 1]].wnid
        if name in val:
            val[name].append(path)
        else:
            others += 1
    return val, [f"{others:,} validation images of classes that train does not have left out"] if others else []


def _hold_out(prefix: str, images: ByClass) -> tuple[ByClass, ByClass]:
    """Return training and validation images; only names from the class on decide."""
    train, val = {}, {}
    for name, paths in images.items():
        digests = {path: xxhash.xxh3_64_intdigest(os.fsencode(path[len(prefix) :])) for path in paths}
        order = sorted(paths, key=lambda path: (digests[path], path))
        count = max(1, len(paths) // _HELD_OUT) if len(paths) > 1 else 0
        val[name], train[name] = order[:count], order[count:]
    return train, val


def _held_out_note(val: ByClass) -> str:
    images = sum(map(len, val.values()))
    note = f"no validation part: {images:,} images held out for it, a tenth of each class, by file name"
    alone = sum(1 for paths in val.values() if not paths)
    return f"{note}; {alone} of {len(val)} classes have one image, none to hold out" if alone else note


def _part(classes: Iterable[str], images: ByClass) -> tuple[ImageFile, ...]:
    return tuple(
        ImageFile(path, label)
        for label, name in enumerate(classes)
        for path in sorted(images.get(name, ()), key=os.fsencode)
    )
