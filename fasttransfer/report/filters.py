"""The first layer of the trained bases, as pictures: read from a study's weights, laid out in a grid."""

from __future__ import annotations

import math

import numpy as np
import safetensors
from numpy.typing import NDArray

from fasttransfer.records import Recorded

_GAP = 1  # pixels between filters


def first_filters(recorded: Recorded, seed: int | None = None) -> dict[str, NDArray[np.float32]]:
    """Task -> conv1 of its base, (filters, 3, kernel, kernel), of `seed` (by default the study's first).

    Bases that are not done, or whose weights are not in the study's folder or cannot be read, are left out.
    """
    bases = [r for r in recorded.results if r.treatment == "base" and r.trained]
    if seed is None:
        seed = min((result.seed for result in recorded.results), default=0)
    found = {}
    for base in bases:
        if base.seed == seed:
            path = recorded.folder / "weights" / f"{base.name}.s{base.seed}.safetensors"
            try:
                with safetensors.safe_open(path, "np") as file:  # only this tensor is read, of what may be 240 MB
                    found[base.target] = file.get_tensor("conv1.weight")
            except (OSError, safetensors.SafetensorError):
                continue
    return dict(sorted(found.items()))


def montage(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Filters (filters, 3, kernel, kernel) side by side as one RGBA picture, wider than high.

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
