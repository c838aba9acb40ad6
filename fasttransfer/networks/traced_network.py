"""A network cut by `fasttransfer.networks.cutting`, with memory, modes and draws for each stage."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Self

import torch
from torch import Tensor, fx, nn

from fasttransfer import ops
from fasttransfer.networks.architecture import StagedNetwork, StepDraws
from fasttransfer.networks.random_modules import StageDraws, random_modules

_ROWS = 64  # stages that read vectors compute the cuts of frozen prefixes on a multiple of so many images
_BODY = "body."  # of the names that a stage gives to what the model calls without it


class TracedStage(nn.Module):
    """One stage. It runs in train mode where it is given draws, unless it is frozen.

    Args:
        template: what `cutting.split` returns; its parameters may lack memory.
        stage: counted from 1.
        precision: "fp32" or "bf16"; parameters are float32 either way.
        device: of the parameters and buffers.
        persistent: names of the buffers and parameters of the model's state.
        scale: (3, 1, 1), by which the images are multiplied; for the first stage alone.
        is_last: whether the stage returns logits, which are float32.
    """

    scale: Tensor | None

    def __init__(
        self,
        template: fx.GraphModule,
        *,
        stage: int,
        precision: str,
        device: torch.device,
        persistent: Collection[str],
        scale: Tensor | None,
        is_last: bool,
    ) -> None:
        super().__init__()
        self.body = _copy_module(template, device)
        for path, module in self.body.named_modules():
            for name in module._buffers:
                if (f"{path}.{name}" if path else name) not in persistent:
                    module._non_persistent_buffers_set.add(name)
        self.register_buffer("scale", None if scale is None else scale.to(device), persistent=False)
        self.is_frozen = False
        self.is_last = is_last
        self._device_type = device.type
        self._is_bf16 = precision == "bf16"
        self._draws = StageDraws(stage)
        for module in random_modules(self.body):
            module.draws = self._draws
        _use_own_convolutions(self.body)

    def forward(self, x: Tensor, draws: StepDraws | None = None) -> Tensor:
        if self.is_frozen:
            draws = None
        if self.body.training != (draws is not None):
            self.body.train(draws is not None)
        self._draws.start(draws)
        if self.scale is not None:
            x = x * self.scale
        if self._is_bf16:
            # Each weight is rounded once per pass anyway; a cache would outlive an optimiser's step in a CUDA graph.
            with torch.autocast(self._device_type, torch.bfloat16, cache_enabled=False):
                x = self.body(x)
        else:
            x = self.body(x.float())
        return x.float() if self.is_last else x


class _Conv2d(nn.Conv2d):
    """`nn.Conv2d` without groups or dilation, whose weight gradient is faster on small maps."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert not isinstance(self.padding, str)
        return ops.conv2d_small_maps(input, weight, bias, self.stride, self.padding)


def _use_own_convolutions(module: nn.Module) -> None:
    for part in module.modules():
        if type(part) is not nn.Conv2d or isinstance(part.padding, str):
            continue
        if part.groups == 1 and part.dilation == (1, 1) and part.padding_mode == "zeros":
            part.__class__ = _Conv2d


def _copy_module(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Return a copy on a device, its 4-d tensors in channels-last memory; parameters without memory become zeros."""
    memo: dict[int, object] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        form = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
        own = torch.empty(tensor.shape, dtype=tensor.dtype, device=device, memory_format=form)
        own.copy_(torch.zeros(()) if tensor.is_meta else tensor.detach())
        memo[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
    return copy.deepcopy(module, memo)


class TracedNetwork(StagedNetwork):
    """The stages of a model of a library; its state has the model's own names.

    Args:
        stages: `TracedStage`s, or anything in place of those that never run.
        of_vectors: the stages, counted from 1, that read one vector per image.
    """

    def __init__(self, stages: list[nn.Module], of_vectors: Collection[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self._of_vectors = of_vectors

    def full_name(self, stage: int, name: str) -> str:
        return name.removeprefix(_BODY)

    def rows(self, stage: int, batch: int) -> int:
        # Matrix products share few rows unevenly among threads, with other bits (docs/decisions/views.md).
        return -(-batch // _ROWS) * _ROWS if stage in self._of_vectors else batch

    def freeze(self) -> Self:
        for stage in self.stages:
            if isinstance(stage, TracedStage):
                stage.is_frozen = True
        return super().freeze()
