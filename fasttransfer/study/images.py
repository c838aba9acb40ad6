"""What --data names: the built-in images, a source that is prepared on first use, or a prepared store."""

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

# Images per class of the built-in set.
BUILTIN_TRAIN, BUILTIN_VAL = 160, 80
BUILTIN_CLASSES = 6
"""Per task, of a study of them when nobody says how many: what two seeds learn to the end in minutes."""
BUILTIN_LAYERS = (1, 3, 5, 7)
"""Of a study of them when nobody names any: all seven take longer than one waits for a first look."""
BUILTIN_SEEDS = (0, 1)
"""Of a study of them when nobody names any: with one, nobody sees how much of a table is noise."""


@dataclass(frozen=True)
class ImageSource:
    """Images as far as they are known without decoding any.

    Attributes:
        name: what a study of them is called.
        where: "builtin", or the absolute path of the source or store.
        classes, words: every class there is, and words people read for some of them.
        per_class: part ("train", "val") -> how many each class has.
        recipe: the name of the one that suits them.
        listing, store: of a source, of a store; both None for the built-in images.
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
        """The images of `classes` in a part, of each at most so many."""
        of_class = dict(zip(self.classes, self.per_class[part], strict=True))
        return sum(min(most or sys.maxsize, of_class[name]) for name in classes)


def find_source(data: str) -> ImageSource:
    """What `data` names: "builtin", a source or the folder of a store.

    Raises:
        InputError: no images there, or a damaged store.
    """
    if data == BUILTIN:
        classes = tuple(sorted(SIDES))
        counts = {"train": (BUILTIN_TRAIN,) * len(classes), "val": (BUILTIN_VAL,) * len(classes)}
        return ImageSource(BUILTIN, BUILTIN, classes, {}, counts, "mini")
    path = Path(data)
    if is_store(path):
        store = Store.open(path)
        labels = {part: getattr(store, part).labels for part in PARTS}
        recipe = "caffe" if store.size == CAFFENET.store else "mini"
        return ImageSource(
            path.resolve().name,
            str(path.resolve()),
            store.classes,
            store.words,
            {part: _per_class(labels[part], len(store.classes)) for part in PARTS},
            recipe,
            store=store,
        )
    listing = list_images(path)
    return ImageSource(
        listing.source.stem,
        str(listing.source.resolve()),
        listing.classes,
        listing.words,
        {part: _per_class([each.label for each in getattr(listing, part)], len(listing.classes)) for part in PARTS},
        default_recipe(listing.layout),
        listing=listing,
    )


def builtin_store(side: int, log: Log, kind: Kind = "raw") -> Store:
    """The built-in images at `side` x `side`, prepared."""
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
    """Images as the networks of `study` see them, on `device`; see `fasttransfer.pipelines.choose_feed.open_feed`."""
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


def _per_class(labels: Sequence[int] | np.ndarray, classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes).tolist())
