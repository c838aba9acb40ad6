"""Copying the first n layers of a network into a fresh one: the act of the study (the paper's section 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fasttransfer.networks.architecture import StagedNetwork
from fasttransfer.study.cells import PRETRAINED, Cell, by_source
from fasttransfer.study.configuration import Study
from fasttransfer.training.draws import random_source


@dataclass(frozen=True)
class Source:
    """A network that cells copy from.

    Attributes:
        net: its first stages, as many as a frozen cell reads, frozen.
        weights: its state, by name, of as many stages as a cell copies.
    """

    net: StagedNetwork
    weights: Mapping[str, Tensor]

    def of_frozen_cells(self) -> Source:
        """Return it with the weights of `net` alone, once all cells are built; those in float32 are held once."""
        own = self.net.state()
        left = {name: self.weights[name] if w.dtype == torch.bfloat16 else w for name, w in own.items()}
        return Source(self.net, left)


def copy_layers(
    source: Source, net: StagedNetwork, n: int, fresh: Mapping[str, Tensor], *, frozen: bool
) -> dict[str, Tensor]:
    """Copy stages 1 to `n` of `source` into `net`, whose other stages are `fresh`.

    Frozen stages become the very modules of the source, so that they are held once for all cells that share them. The
    values of fine-tuned ones are returned, as are those of the source's frozen ones.

    Returns:
        The state, by name, that the stages of `net` start from.
    """
    if frozen:
        for i in range(n):
            net.stages[i] = source.net.stages[i]
    return {**fresh, **{name: source.weights[name] for name in net.state(0, n)}}


def source_weights(
    study: Study,
    cells: Sequence[Cell],
    outputs: int,
    read_base: Callable[[Cell], Mapping[str, Tensor]],
    read_pretrained: Callable[[], Mapping[str, Tensor]],
) -> dict[str, dict[str, Tensor]]:
    """Return source -> the state of its first stages, as many as any of `cells` copies.

    Args:
        cells: of one target and seed.
        outputs: width of the last layer.
        read_base: returns the state of a base; read_pretrained: that of --weights. Random sources are drawn.
    """
    weights = {}
    for source, group in by_source(cells).items():
        n, base = max(cell.n for cell in group), group[0].needs
        if base is not None:
            read = read_base(base)
        elif source == PRETRAINED:
            read = read_pretrained()
        else:
            read = random_source(study, group[0], outputs, n)
        weights[source] = {name: read[name] for name in study.recipe.network.names(0, n)}
    return weights
