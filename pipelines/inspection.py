"""Describe images before a study: `fasttransfer data inspect`."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from fasttransfer.pipelines.decode import ImageError, decoded, open_image
from fasttransfer.pipelines.layouts import ImageFile, Listing, list_images
from fasttransfer.pipelines.store import Store, is_store

SAMPLE = 200


class Spread(NamedTuple):
    """The least, the median and the largest of some numbers."""

    least: int
    median: float
    most: int


@dataclass(frozen=True)
class Inspection:
    """A description of a source or a store. What it says of files was read from `sampled` of them."""

    layout: str
    images: Mapping[str, int]  # "train", "val" -> number of images
    per_class: Mapping[str, Spread]  # "train", "val" -> images per class
    notes: tuple[str, ...]
    sampled: int
    widths: Spread | None  # pixels; None where no sampled image could be opened
    heights: Spread | None
    modes: Mapping[str, int]  # Pillow's mode, e.g. "RGB", "L" -> images
    formats: Mapping[str, int]  # Pillow's format, e.g. "JPEG" -> images
    bad: tuple[tuple[str, str], ...]  # path and reason


def open_images(path: Path) -> Listing | Store:
    """Open the store in a folder, or list the images of a source.

    Raises:
        InputError: it is neither, or damaged.
    """
    return Store.open(path) if is_store(path) else list_images(path)


def inspect(what: Path | Listing | Store) -> Inspection:
    """Describe a folder, a tar or a prepared store.

    Reads a sample of `SAMPLE` files, the same each time: those with the smallest digests of their paths.

    Raises:
        InputError: no images there, or a damaged store.
    """
    if isinstance(what, Path):
        what = open_images(what)
    images = {part: len(labels) for part, labels in what.labels.items()}
    per_class = {
        part: _spread(np.bincount(labels, minlength=len(what.classes))) for part, labels in what.labels.items()
    }
    if isinstance(what, Store):
        total, side = sum(images.values()), Spread(what.size, what.size, what.size)
        return Inspection(
            layout=str(what.manifest["layout"]),
            images=images,
            per_class=per_class,
            notes=tuple(what.manifest["notes"]),
            sampled=total,
            widths=side,
            heights=side,
            modes={"RGB": total},
            formats={what.kind: total},
            bad=tuple((each["path"], each["reason"]) for each in what.manifest["refused"]),
        )
    sample = _sample([*what.train, *what.val])
    sizes, modes, formats, bad = [], Counter[str](), Counter[str](), []
    suspicious: list[str] = []

    def note(image: ImageFile, text: str) -> None:
        suspicious.append(f"{image.path}: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd notes in files that decode well
        for image in sample:
            try:
                data = what.read(image)
                with open_image(data) as opened:
                    sizes.append(opened.size)
                    modes[opened.mode] += 1
                    formats[opened.format or "unknown"] += 1
                with decoded(data, partial(note, image)):
                    pass
            except (OSError, ImageError) as error:
                bad.append((image.path, str(error)))
    return Inspection(
        layout=what.layout,
        images=images,
        per_class=per_class,
        notes=(*what.notes, *suspicious),
        sampled=len(sample),
        widths=_spread([width for width, _ in sizes]) if sizes else None,
        heights=_spread([height for _, height in sizes]) if sizes else None,
        modes=dict(modes.most_common()),
        formats=dict(formats.most_common()),
        bad=tuple(bad),
    )


def _sample(images: Sequence[ImageFile]) -> list[ImageFile]:
    some = sorted(images, key=lambda image: xxhash.xxh3_64_intdigest(os.fsencode(image.path)))[:SAMPLE]
    return sorted(some, key=lambda image: (image.label, image.path))


def _spread(numbers: Sequence[int] | NDArray[np.int64]) -> Spread:
    return Spread(int(np.min(numbers)), float(np.median(numbers)), int(np.max(numbers)))
