"""Find the image of a store because of which a batch cannot be made: disks rot after all was checked."""

from __future__ import annotations

import numpy as np

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.decode import ImageError
from fasttransfer.pipelines.store import JpegStorePart, Rows, damaged_store_error


def find_bad_image(part: JpegStorePart, rows: Rows) -> InputError | None:
    """Return an error that names the first of `rows` that cannot be read or decoded; None where all can."""
    for row in rows.tolist():
        try:
            part.gather(np.array([row]))
        except OSError as error:
            return bad_image_error(part, row, (error.strerror or str(error)).lower())
        except ImageError as error:
            return bad_image_error(part, row, str(error))
    return None


def bad_image_error(part: JpegStorePart, row: int, reason: str) -> InputError:
    """Return the error about an image that cannot be used."""
    shard = part.files[int(np.searchsorted(part.starts, row, side="right")) - 1]
    return damaged_store_error(shard.parent, f"{row:08d}.jpg in {shard.name}: {reason}")
