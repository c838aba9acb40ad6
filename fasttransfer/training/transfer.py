"""Copying the first n layers of a network into a fresh one: the act of the study (the paper's section 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fasttransfer.networks.caffenet import CaffeNet
from fasttransfer.networks.geometry import LAYER_NAMES
from fasttransfer.study.cells import Cell, by_source
from fasttransfer.study.configuration import Study
from fasttransfer.training.draws import random_source


@dataclass(frozen=True)
class Source:
    """A network that cells copy from.

    Attributes:
        net: its first stages, as many as a frozen cell reads, without gradients.
        weights: name -> float32, as many layers as a cell copies.
    """

    net: CaffeNet
    weights: Mapping[str, Tensor]

    def of_frozen_cells(self) -> Source:
        """Return it with the weights of `net` alone, once all cells are built; those in float32 are held once."""
        own = self.net.named_weights(0, len(self.net.stages))
        left = {name: w.detach() if w.dtype == torch.float32 else self.weights[name] for name, w in own.items()}
        return Source(self.net, left)


def copy_layers(
    source: Source, net: CaffeNet, n: int, fresh: Mapping[str, Tensor], *, frozen: bool
) -> dict[str, Tensor]:
    """Copy layers 1 to `n` of `source` into `net`, whose other layers are `fresh`.

    Frozen layers become the very modules of the source, so that they are held once for all cells that share them. The
    values of fine-tuned ones are returned, as are those of the source's frozen ones.

    Returns:
        name -> float32, the values that the layers of `net` start from.
    """
    if frozen:
        for i in range(n):
            net.stages[i] = source.net.stages[i]
    return {**fresh, **{name: source.weights[name] for name in net.named_weights(0, n)}}


def source_weights(
    study: Study, cells: Sequence[Cell], outputs: int, read_base: Callable[[Cell], Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Return source -> its first layers, as many as any of `cells` copies; all cells are of one target and seed.

    Args:
        outputs: width of the last layer.
        read_base: returns the weights of a base; random sources are drawn.
    """
    weights = {}
    for source, group in by_source(cells).items():
        n, base = max(cell.n for cell in group), group[0].needs
        read = read_base(base) if base else random_source(study, group[0], outputs, n)
        weights[source] = {name: w for name, w in read.items() if name.split(".")[0] in LAYER_NAMES[:n]}
    return weights
