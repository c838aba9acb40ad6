"""The images that --data names: the built-in ones, a source that is prepared on first use, or a prepared store."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fasttransfer.core.files import cache_folder
from fasttransfer.core.progress import Log
from fasttransfer.networks import inputs
from fasttransfer.networks.geometry import CAFFENET
from fasttransfer.pipelines import prepare
from fasttransfer.pipelines.choose_feed import open_feed
from fasttransfer.pipelines.layouts import Listing, list_images
from fasttransfer.pipelines.store import PARTS, Kind, Store, is_store
from fasttransfer.pipelines.streams import Feed, Stream, TaskImages
from fasttransfer.pipelines.synthetic import SIDES
from fasttransfer.study.configuration import BUILTIN, Study
from fasttransfer.study.recipe import default_recipe

BUILTIN_TRAIN, BUILTIN_VAL = 160, 80
"""Training and validation images per class of the built-in set."""
BUILTIN_CLASSES = 6
"""Default classes per task of a study of the built-in images: two seeds learn them to the end in minutes."""
BUILTIN_LAYERS = (1, 3, 5, 7)
"""Default layers of a study of the built-in images: all seven take too long for a first look."""
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
        recipe: the name of their default recipe.
        listing, store: set for a source, for a store; both None for the built-in images.
    """

    name: str
    where: str
    classes: tuple[str, ...]
    words: dict[str, str]
    per_class: dict[str, tuple[int, ...]]
    recipe: str
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
        return ImageSource(BUILTIN, BUILTIN, classes, {}, counts, "mini")
    path = Path(data)
    if is_store(path):
        store = Store.open(path)
        counts = {part: _count_per_class(getattr(store, part).labels, len(store.classes)) for part in PARTS}
        recipe = "caffe" if store.size == CAFFENET.store else "mini"
        where = path.resolve()
        return ImageSource(where.name, str(where), store.classes, store.words, counts, recipe, store=store)
    listing = list_images(path)
    labels = {part: [image.label for image in getattr(listing, part)] for part in PARTS}
    return ImageSource(
        listing.source.stem,
        str(listing.source.resolve()),
        listing.classes,
        listing.words,
        {part: _count_per_class(labels[part], len(listing.classes)) for part in PARTS},
        default_recipe(listing.layout),
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


def study_feed(
    study: Study,
    device: torch.device,
    hw_share: float | None,
    train: TaskImages,
    val: TaskImages,
    stream: Stream,
    means: Mapping[str, Tensor],
) -> Feed:
    """Open the feed of images in the form that the networks of `study` read, on `device`.

    For the other parameters see `fasttransfer.pipelines.choose_feed.open_feed`.
    """
    geometry = study.recipe.geometry
    return open_feed(
        train,
        val,
        stream,
        means,
        device=device,
        threads=study.threads,
        hw_share=hw_share,
        crop=geometry.crop,
        scale=study.recipe.scale,
        **inputs.choose_input_form(geometry, device.type, study.precision),
    )


def _count_per_class(labels: Sequence[int] | np.ndarray, classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes).tolist())
