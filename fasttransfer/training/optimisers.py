"""The optimisers: Caffe's SGD as one native operator, and SGD and AdamW of torch.

An optimiser updates float32 weights in place, and writes the rounded copies that a network in bfloat16 reads. Its state
is a set of named tensors that exist from the start, so that a checkpoint holds them and a resumed run is exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fasttransfer import ops
from fasttransfer.study.recipe import Recipe


class Optimiser(ABC):
    """The rule by which gradients change weights.

    Attributes:
        state: name -> tensor: what the optimiser knows beside the weights.
    """

    state: Mapping[str, Tensor]

    @abstractmethod
    def step(self, gradients: Sequence[Tensor], lr: Tensor) -> None:
        """Update the weights.

        Args:
            gradients: one per weight, of its shape, float32 or bfloat16.
            lr: the learning rate, float32 without dimensions, on the weights' device.
        """


def make_optimiser(recipe: Recipe, weights: Mapping[str, Tensor], copies: Sequence[Tensor]) -> Optimiser:
    """Return the optimiser of a recipe.

    Args:
        weights: name -> float32, updated in place.
        copies: none, or one per weight, which the network reads, see `fasttransfer.ops.sgd_step`.
    """
    if recipe.optimiser == "caffe":
        return CaffeSGD(recipe, weights, copies)
    return TorchOptimiser(recipe, weights, copies)


def is_decayed(weight: Tensor) -> bool:
    """Return whether the recipe's whole weight decay applies: not to biases and weights of normalisation layers."""
    return weight.dim() > 1


class CaffeSGD(Optimiser):
    """Caffe's SGD, whose velocities contain the learning rate, see `fasttransfer.ops.sgd_step`."""

    def __init__(self, recipe: Recipe, weights: Mapping[str, Tensor], copies: Sequence[Tensor]) -> None:
        velocities = {name: torch.zeros_like(w) for name, w in weights.items()}
        self.state = {f"velocity/{name}": v for name, v in velocities.items()}
        self._weights, self._velocities, self._copies = list(weights.values()), list(velocities.values()), copies
        self._momentum = recipe.momentum
        self._lr_scale = [1.0 if is_decayed(w) else recipe.bias_lr for w in self._weights]
        self._decay = [recipe.weight_decay * (1.0 if is_decayed(w) else recipe.bias_decay) for w in self._weights]

    def step(self, gradients: Sequence[Tensor], lr: Tensor) -> None:
        ops.sgd_step(
            self._weights,
            self._velocities,
            gradients,
            self._copies,
            lr=lr,
            momentum=self._momentum,
            lr_scale=self._lr_scale,
            decay=self._decay,
        )


class TorchOptimiser(Optimiser):
    """torch's fused SGD with momentum, or fused AdamW."""

    def __init__(self, recipe: Recipe, weights: Mapping[str, Tensor], copies: Sequence[Tensor]) -> None:
        self._weights, self._copies = list(weights.values()), list(copies)
        self._views = [_in_order_of_memory(w.detach()) for w in self._weights]
        groups = [
            {"params": [w for w in self._views if is_decayed(w)], "weight_decay": recipe.weight_decay},
            {
                "params": [w for w in self._views if not is_decayed(w)],
                "weight_decay": recipe.weight_decay * recipe.bias_decay,
            },
        ]
        groups = [group for group in groups if group["params"]]
        lr = torch.tensor(recipe.lr, device=self._weights[0].device)
        self._optimiser: torch.optim.Optimizer
        moments: tuple[str, ...]
        if recipe.optimiser == "sgd":
            self._optimiser = torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, fused=True)
            moments = ("momentum_buffer",)
        else:
            is_cuda = lr.device.type == "cuda"
            betas = recipe.momentum, recipe.beta2
            self._optimiser = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True, capturable=is_cuda)
            moments = ("exp_avg", "exp_avg_sq", "step")
        self.state = {}
        for (name, weight), view in zip(weights.items(), self._views, strict=True):
            # torch would make these at the first step.
            for moment in moments:
                zeros = torch.zeros((), device=weight.device) if moment == "step" else torch.zeros_like(weight)
                self.state[f"{moment}/{name}"] = zeros
                self._optimiser.state[view][moment] = _in_order_of_memory(zeros)

    def step(self, gradients: Sequence[Tensor], lr: Tensor) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        for weight, view, gradient in zip(self._weights, self._views, gradients, strict=True):
            if gradient.stride() != weight.stride() or gradient.dtype != weight.dtype:  # fused kernels need both alike
                gradient = torch.empty_like(weight).copy_(gradient)
            view.grad = _in_order_of_memory(gradient)
        self._optimiser.step()
        for view in self._views:
            view.grad = None
        if self._copies:
            torch._foreach_copy_(self._copies, self._weights)


def _in_order_of_memory(tensor: Tensor) -> Tensor:
    """Return a contiguous view of a channels-last tensor: of others torch's fused kernels make copies on CPUs."""
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 and not tensor.is_contiguous() else tensor
