"""Which picture of a store is to blame when a batch cannot be made of it: disks rot after all was checked."""

from __future__ import annotations

import numpy as np

from fasttransfer.errors import InputError
from fasttransfer.pipelines.decode import PictureError
from fasttransfer.pipelines.store import JpegPart, Rows, damaged


def culprit(part: JpegPart, rows: Rows) -> InputError | None:
    """The first of `rows` that cannot be read or decoded, by name and with the reason; None where each can."""
    for row in rows.tolist():
        try:
            part.gather(np.array([row]))
        except OSError as error:
            return refusal(part, row, (error.strerror or str(error)).lower())
        except PictureError as error:
            return refusal(part, row, str(error))
    return None


def refusal(part: JpegPart, row: int, reason: str) -> InputError:
    """What to say of a picture that cannot be used."""
    shard = part.files[int(np.searchsorted(part.starts, row, side="right")) - 1]
    return damaged(shard.parent, f"{row:08d}.jpg in {shard.name}: {reason}")
