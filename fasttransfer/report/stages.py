"""The words for a cut: its number, and the name of the stage that it leaves where the study records names.

The facts of a study hold `stages`, the names of its network's stages in order, the classifier last. Published results
and studies recorded before there were other networks lack it. All of these have the paper's stages; their cuts have
only numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAPER_STAGES = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
NO_OVERLAY = (
    "The paper's curves are left out: its network has other stages than this study's, so that n of one is not n of the "
    "other."
)


@dataclass(frozen=True)
class Stages:
    """The names of a network's stages in order, the classifier last; empty where its study does not record them."""

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Stages:
        """Return the stages of a study with these facts."""
        return cls(tuple(facts.get("stages", ())))

    @property
    def network(self) -> tuple[str, ...]:
        """The stages that decide whether n of two studies is the same cut: the names, else the paper's."""
        return self.names or PAPER_STAGES

    @property
    def are_papers(self) -> bool:
        """Return whether they are those of the paper's network."""
        return self.network == PAPER_STAGES

    @property
    def cuts(self) -> int:
        """The number of cuts: the stages without the classifier."""
        return len(self.network) - 1

    @property
    def word(self) -> str:
        """What the parts of the network are called, in the singular."""
        return "stage" if self.names else "layer"

    @property
    def head(self) -> str:
        """The heading of a column of `label`."""
        return "n, stage" if self.names else "n"

    def name(self, n: int) -> str:
        """Return the name of stage `n`; "" where it is not known, and for n = 0."""
        return self.names[n - 1] if 0 < n <= len(self.names) else ""

    def short_name(self, n: int) -> str:
        """Return `name` as short as it can be told from the others."""
        return short_names(self.names)[n - 1] if self.name(n) else ""

    def label(self, n: int) -> str:
        """Return "4 layer2.1", or "4"."""
        return f"{n} {self.name(n)}".rstrip()

    def one(self, n: int) -> str:
        """Return "stage 4 (layer2.1)", or "layer 4"."""
        return f"{self.word} {n}{self._bracket(n)}"

    def first(self, n: int) -> str:
        """Return "the first 4 stages (up to layer2.1)", or "the first 4 layers"."""
        if n == 1:
            return f"the first {self.word}{self._bracket(1)}"
        name = self.name(n)
        return f"the first {n} {self.word}s{f' (up to {name})' if name else ''}"

    def at(self, *cuts: int) -> str:
        """Return "n = 4 (layer2.1)", or "n = 4"; of several, ascending, "n = 1 to 3 (conv1 to layer1.1), 9"."""
        return f"n = {', '.join(self._stretch(first, last) for first, last in _stretches(cuts))}"

    def _stretch(self, first: int, last: int) -> str:
        if first == last:
            return f"{first}{self._bracket(first)}"
        names = f" ({self.name(first)} to {self.name(last)})" if self.name(last) else ""
        return f"{first} to {last}{names}"

    def _bracket(self, n: int) -> str:
        return f" ({self.name(n)})" if self.name(n) else ""


def _stretches(cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last of each three or more cuts that follow each other, and the others alone."""
    stretches: list[tuple[int, int]] = []
    for cut in cuts:
        if stretches and cut == stretches[-1][1] + 1:
            stretches[-1] = (stretches[-1][0], cut)
        else:
            stretches.append((cut, cut))
    return [
        part
        for first, last in stretches
        for part in ([(first, last)] if last - first > 1 else [(n, n) for n in range(first, last + 1)])
    ]


@functools.cache
def short_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names as short as an axis needs them, still different from each other.

    Of a dotted name the last parts are left that begin with a letter and end no other name:
    "encoder.layers.encoder_layer_3" becomes "encoder_layer_3", while "layer2.1" beside "layer1.1" stays.
    """
    return tuple(_shorten(name, [other for other in names if other != name]) for name in names)


def _shorten(name: str, others: Sequence[str]) -> str:
    parts = name.split(".")
    for start in range(len(parts) - 1, 0, -1):
        tail = ".".join(parts[start:])
        if tail[:1].isalpha() and not any(f".{other}".endswith(f".{tail}") for other in others):
            return tail
    return name
