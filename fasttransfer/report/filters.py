"""The filters of the trained bases that read the image, as an image, from the weights of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray

from fasttransfer.study import cells, paths
from fasttransfer.study.records import StudyResults

_GAP = 1  # pixels between filters


class FirstFilters(NamedTuple):
    """The filters that read the image: the name of their layer, and (filters, 3, kernel, kernel) float32."""

    layer: str
    weights: NDArray[np.float32]


def first_filters(recorded: StudyResults) -> dict[str, FirstFilters]:
    """Return the filters of each base of the study's first seed, by task.

    Bases that are not done, whose weights are not in the study's folder or cannot be read, and those that read the
    image by something else than square filters of three channels, are left out.
    """
    seed = min((result.seed for result in recorded.results), default=0)
    weights = {}
    for base in recorded.results:
        if base.treatment == cells.BASE and base.trained and base.seed == seed:
            path = paths.weights_file(recorded.folder, cells.base(base.target, seed))
            try:
                with safetensors.safe_open(path, "np") as file:  # only this tensor is read, of what may be 240 MB
                    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
                    for name in (name for name, shape in shapes.items() if _reads_images(name, shape)):
                        layer = name.removesuffix(".weight")
                        weights[base.target] = FirstFilters(layer, file.get_tensor(name).astype(np.float32))
                        break
            except (OSError, safetensors.SafetensorError):
                continue
    return dict(sorted(weights.items()))


def _reads_images(name: str, shape: Sequence[int]) -> bool:
    """Return whether a tensor is the weights of a convolution of the image: no other has three channels."""
    return name.endswith(".weight") and len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 1


def smoothness(weights: NDArray[np.float32]) -> float:
    """Return the correlation of weights that are neighbours, over all filters and channels, in [-1, 1].

    A pair is two weights side by side or one above the other. The correlation is taken about zero, the mean of initial
    values: those are drawn independently, so that theirs is 0 in expectation, and structure in a trained layer shows
    as what exceeds it. Weights that are all zero give 0.

    Args:
        weights: (filters, channels, kernel, kernel).
    """
    w = weights.astype(np.float64)
    one = np.concatenate([w[..., :-1].ravel(), w[..., :-1, :].ravel()])
    other = np.concatenate([w[..., 1:].ravel(), w[..., 1:, :].ravel()])
    size = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / size if size else 0.0


def montage(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return filters (filters, 3, kernel, kernel) side by side as one RGBA image, wider than high.

    Each is divided by its own largest weight, so that zero is middle grey; the gaps are transparent.
    """
    count, _, kernel, _ = weights.shape
    least = math.ceil(math.sqrt(count))
    columns = next((c for c in range(least, 2 * least) if count % c == 0), least)  # rows without a hole if it can be
    rows = math.ceil(count / columns)
    pitch = kernel + _GAP
    sheet = np.zeros((rows * pitch - _GAP, columns * pitch - _GAP, 4), dtype=np.uint8)
    for i, weight in enumerate(weights):
        top, left = (i // columns) * pitch, (i % columns) * pitch
        scaled = weight / max(float(np.abs(weight).max()), 1e-12)
        sheet[top : top + kernel, left : left + kernel, :3] = np.rint(127.5 + 127.5 * scaled).transpose(1, 2, 0)
        sheet[top : top + kernel, left : left + kernel, 3] = 255
    return sheet
