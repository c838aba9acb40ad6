"""The axis of n: the numbers of the cuts and the names of their stages, for any number of either."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from fasttransfer.report.drawing import PANEL, grid
from fasttransfer.report.stages import Stages

_SIZE = 7  # points, of names
_LINE = 9.2  # points between lines of names
_PAD = 18  # points from the axis to the names, below the numbers
_MARGINS = 50  # points of a panel's width that are not its axis


@dataclass(frozen=True)
class CutAxis:
    """The axis of a panel.

    Attributes:
        cuts: those measured, ascending.
        stages: their names, below the numbers: upright where they would not fit side by side.
        has_base: whether the base stands at 0.
    """

    cuts: tuple[int, ...]
    stages: Stages
    has_base: bool = False

    @property
    def size(self) -> tuple[float, float]:
        """The width and height of a panel in inches, with room for the names, and for every label if two columns do."""
        width = PANEL[0] if self._least_gap(PANEL[0]) >= self._needed else 2 * PANEL[0]
        longest = max(map(_width, self._names), default=0.0)
        rows = 0.0 if not longest else _LINE if self._is_level(width) else longest + 3
        return width, PANEL[1] + rows / 72

    def draw(self, ax: Axes) -> None:
        """Put n along the x axis of a panel of `size`."""
        ax.set_xlabel(f"{self.stages.word}s copied, n")
        grid(ax)
        ticks = self._ticks
        if not ticks:
            ax.set_xticks([])
            return
        width, _ = self.size
        is_level = self._is_level(width)
        labelled = self._labelled(width)
        numbers = ["base" if n == 0 and is_level else str(n) for n in ticks]
        ax.set_xlim(ticks[0] - 0.5, ticks[-1] + 0.5)
        ax.set_xticks(ticks, [text if n in labelled else "" for n, text in zip(ticks, numbers, strict=True)])
        if any(self._names):
            names = ["base" if n == 0 and not is_level else name for n, name in zip(ticks, self._names, strict=True)]
            ax.xaxis.remove_overlapping_locs = False
            ax.set_xticks(labelled, [names[ticks.index(n)] for n in labelled], minor=True)
            ax.tick_params(
                axis="x", which="minor", length=0, pad=_PAD, labelsize=_SIZE, labelrotation=0 if is_level else 90
            )
            if not is_level:
                ax.tick_params(axis="x", which="major", labelsize=_SIZE)

    @property
    def _ticks(self) -> tuple[int, ...]:
        return (0, *self.cuts) if self.has_base else self.cuts

    @property
    def _names(self) -> list[str]:
        """The names of the ticks as they are shown; all empty where they are not known."""
        return [self.stages.short_name(n) for n in self._ticks]

    @property
    def _needed(self) -> float:
        """The points from one label to the next where names stand upright."""
        longest = max((_width(str(n)) for n in self._ticks), default=0.0)
        return max(_LINE if any(self._names) else 0.0, longest + 1.5)

    def _points(self, width: float) -> float:
        """Return the points from n to n + 1 on a panel so many inches wide."""
        return (72 * width - _MARGINS) / (self._ticks[-1] - self._ticks[0] + 1)

    def _least_gap(self, width: float) -> float:
        gaps = [self._points(width) * (b - a) for a, b in zip(self._ticks, self._ticks[1:], strict=False)]
        return min(gaps, default=math.inf)

    def _is_level(self, width: float) -> bool:
        """Return whether the names, or "base", fit side by side."""
        longest = max(map(_width, (*self._names, "base" if self.has_base else "")))
        return self._least_gap(width) >= longest + 2

    def _labelled(self, width: float) -> list[int]:
        """Return the ticks with labels: every one where the panel is wide enough, else the first, the last and some."""
        first, *others = self._ticks
        points, kept = self._points(width), [first]
        for n in others:
            if points * (n - kept[-1]) >= self._needed:
                kept.append(n)
        last = self._ticks[-1]
        while kept[-1] != last and len(kept) > 1 and points * (last - kept[-1]) < self._needed:
            kept.pop()
        return kept if kept[-1] == last else [*kept, last]


@functools.cache
def _width(text: str) -> float:
    """Return the width of a name in points."""
    return float(TextPath((0, 0), text, _SIZE, FontProperties("DejaVu Sans")).get_extents().width) if text else 0.0


def cut_axis(cuts: Sequence[int], stages: Stages, *, has_base: bool = False) -> CutAxis:
    """Return the axis of `cuts`, in any order and each named as often as it likes."""
    return CutAxis(tuple(sorted(set(cuts))), stages, has_base)
