"""The classes of ILSVRC12 with their sides, and the labels of its validation images.

`ilsvrc12.tsv` has one class per line in label order (wnid, side in the paper's natural / man-made split, words);
`ilsvrc12_val_labels.txt.gz` has the label of `ILSVRC2012_val_00000001.JPEG` to `_00050000.JPEG`, one per line.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Synset(NamedTuple):
    """A class of ILSVRC12; its label is its place in `ilsvrc12()`."""

    wnid: str
    side: str  # "natural" | "man-made"
    words: str


@cache
def ilsvrc12() -> tuple[Synset, ...]:
    """Return the 1000 classes in label order, which is the sorted order of their wnids."""
    lines = files(__name__).joinpath("ilsvrc12.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(Synset(*line.split("\t")) for line in lines[1:])


@cache
def ilsvrc12_val_labels() -> tuple[int, ...]:
    """Return the labels of the 50,000 validation images; that of image number 1 comes first."""
    packed = files(__name__).joinpath("ilsvrc12_val_labels.txt.gz").read_bytes()
    return tuple(map(int, gzip.decompress(packed).split()))
