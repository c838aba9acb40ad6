"""The images that --data names: the built-in ones, a source that is prepared on first use, or a prepared store."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fasttransfer.core.files import cache_folder
from fasttransfer.core.progress import Log
from fasttransfer.pipelines import prepare
from fasttransfer.pipelines.layouts import Listing, list_images
from fasttransfer.pipelines.store import PARTS, Kind, Store, is_store
from fasttransfer.pipelines.synthetic import SIDES
from fasttransfer.study.configuration import BUILTIN

_LARGE = 160  # side of a store, in pixels, from which its images are large
BUILTIN_TRAIN, BUILTIN_VAL = 160, 80
"""Training and validation images per class of the built-in set."""
BUILTIN_CLASSES = 6
"""Default classes per task of a study of the built-in images: two seeds learn them to the end in minutes."""
BUILTIN_SEEDS = (0, 1)
"""Default seeds of a study of the built-in images: a single one does not show how much of a table is noise."""


@dataclass(frozen=True)
class ImageSource:
    """The facts about a set of images that are known without decoding any.

    Attributes:
        name: the default name of a study of them.
        where: "builtin", or the absolute path of the source or store.
        classes, words: every class, and class -> readable words for some of them.
        per_class: part ("train", "val") -> number of images of each class.
        is_small: whether networks of small images suit them.
        listing, store: set for a source, for a store; both None for the built-in images.
    """

    name: str
    where: str
    classes: tuple[str, ...]
    words: dict[str, str]
    per_class: dict[str, tuple[int, ...]]
    is_small: bool
    listing: Listing | None = None
    store: Store | None = None

    def count(self, part: str, classes: Sequence[str], most: int | None = None) -> int:
        """Return the number of images of `classes` in a part, at most `most` per class."""
        counts = dict(zip(self.classes, self.per_class[part], strict=True))
        return sum(min(most or sys.maxsize, counts[name]) for name in classes)


def find_source(data: str) -> ImageSource:
    """Return the images that `data` names: "builtin", a source or the folder of a store.

    Raises:
        InputError: there are no images, or the store is damaged.
    """
    if data == BUILTIN:
        classes = tuple(sorted(SIDES))
        counts = {"train": (BUILTIN_TRAIN,) * len(classes), "val": (BUILTIN_VAL,) * len(classes)}
        return ImageSource(BUILTIN, BUILTIN, classes, {}, counts, True)
    path = Path(data)
    if is_store(path):
        store = Store.open(path)
        counts = {part: _count_per_class(getattr(store, part).labels, len(store.classes)) for part in PARTS}
        where, is_small = path.resolve(), store.size < _LARGE
        return ImageSource(where.name, str(where), store.classes, store.words, counts, is_small, store=store)
    listing = list_images(path)
    labels = {part: [image.label for image in getattr(listing, part)] for part in PARTS}
    return ImageSource(
        Path(os.path.abspath(path)).stem or "images",  # "." and ".." have no name of their own, "/" has none at all
        str(listing.source.resolve()),
        listing.classes,
        listing.words,
        {part: _count_per_class(labels[part], len(listing.classes)) for part in PARTS},
        listing.layout != "ilsvrc12",
        listing=listing,
    )


def open_store(
    source: ImageSource, side: int, *, kind: Kind, bad_images: str, device: str = "cpu", log: Log = print
) -> Store:
    """Return the store of a source, prepared at `side` x `side` on first use; a named store is returned as it is.

    For the other parameters see `fasttransfer.pipelines.prepare.prepare`.

    Raises:
        InputError: an image cannot be decoded; the disk is full.
    """
    if source.store is not None:
        return source.store
    if source.listing is None:
        return builtin_store(side, log, kind)
    return prepare.prepare(
        source.listing, size=side, cache=cache_folder(), kind=kind, bad_images=bad_images, device=device, log=log
    )


def builtin_store(side: int, log: Log, kind: Kind = "raw") -> Store:
    """Return the store of the built-in images at `side` x `side`, preparing it on first use."""
    return prepare.prepare_builtin(
        size=side, cache=cache_folder(), train=BUILTIN_TRAIN, val=BUILTIN_VAL, kind=kind, log=log
    )


def _count_per_class(labels: Sequence[int] | np.ndarray, classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes).tolist())
