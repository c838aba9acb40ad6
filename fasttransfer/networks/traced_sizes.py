"""Multiply-adds and bytes of each stage of a traced network, counted on tensors without memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fasttransfer.networks.architecture import StagedNetwork, StepDraws

_LOOSE = 1.3  # allocators round up, and operators need working memory
_Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class StageBytes:
    """The bytes that a stage needs in training.

    Attributes:
        fixed: gradients of its parameters, and what is kept for backward whatever the batch.
        per_image: what is kept for backward.
        largest: its largest activation, of one image.
    """

    fixed: int
    per_image: int
    largest: int


def step_bytes(stages: Sequence[StageBytes], batch: int) -> int:
    """Return the most bytes of activations and gradients in a training step of these stages."""
    total = sum(stage.fixed + stage.per_image * batch for stage in stages)
    return round(_LOOSE * (total + 2 * batch * max((stage.largest for stage in stages), default=0)))


def multiply_adds(network: StagedNetwork, cuts: _Shapes) -> tuple[int, ...]:
    """Return the multiply-adds of each stage for one image, forward.

    Args:
        network: on the meta device.
        cuts: shapes at cuts 0, 1, ... for one image.
    """
    counts = []
    for stage, shape in zip(network.stages, cuts, strict=False):
        # Attention as two products: not every fused form of it is counted.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            stage(torch.zeros((1, *shape), device="meta"), None)
        counts.append(counter.get_total_flops() // 2)
    return tuple(counts)


def stage_bytes(network: StagedNetwork, cuts: _Shapes) -> tuple[StageBytes, ...]:
    """Return the bytes of each stage, of a network on the meta device. Arguments as for `multiply_adds`."""
    device = next(network.parameters()).device
    draws = StepDraws(dict.fromkeys(range(1, len(cuts)), 0), torch.zeros((), dtype=torch.int64, device=device), 0.5)
    stages = []
    dtype = torch.float32  # of what enters a stage
    for stage, shape in zip(network.stages, cuts, strict=False):
        weights = {p.untyped_storage()._cdata: 4 * p.numel() for p in stage.parameters()}
        by_batch = {}
        for batch in (2, 4):
            with _saved_bytes(weights) as sizes:
                y = stage(torch.zeros((batch, *shape), dtype=dtype, device=device, requires_grad=True), draws)
            by_batch[batch] = list(sizes.values())
        growth = [(of_4 - of_2) // 2 for of_2, of_4 in zip(by_batch[2], by_batch[4], strict=True)]
        largest = max(y.untyped_storage().nbytes() // 4, *growth)
        dtype = y.dtype
        stages.append(StageBytes(sum(weights.values()) + sum(by_batch[2]) - 2 * sum(growth), sum(growth), largest))
    return tuple(stages)


@contextmanager
def _saved_bytes(weights: dict[int, int]) -> Iterator[dict[int, int]]:
    """Collect storage -> bytes of what is kept for backward, without the weights themselves."""
    sizes: dict[int, int] = {}
    alive = []  # a storage that is gone may give its address to the next

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
