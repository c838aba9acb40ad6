"""The fixed list of views of `--views V`, so that features can be computed once and reused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

COUNTS = (1, 2, 10)
UNLIMITED = "unlimited"


class View(NamedTuple):
    """A crop of a stored image: its corner in pixels, and whether it is mirrored."""

    top: int
    left: int
    mirror: bool


def list_views(count: int, margin: int) -> tuple[View, ...]:
    """Return the views of a study: 1 is the centre, 2 the centre and its mirror, 10 these and the corners with theirs.

    The shorter lists are the beginnings of the longer ones; validation uses number 0. The ten are those that Krizhevsky
    et al. 2012 average over when they test.

    Args:
        count: 1, 2 or 10.
        margin: side of the store minus side of the crop, in pixels.
    """
    middle = margin // 2
    corners = ((middle, middle), (0, 0), (0, margin), (margin, 0), (margin, margin))
    return tuple(View(top, left, mirror) for top, left in corners for mirror in (False, True))[:count]


def describe_views(study: Mapping[str, object]) -> str:
    """Return the name of a study's views in records, tables and figures, from its table in study.toml: "10"."""
    return str(study.get("views", UNLIMITED))
