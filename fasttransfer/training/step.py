"""One training step of one network: loss, gradients, update. A cohort runs it for each of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fasttransfer.networks.architecture import StagedNetwork, StepDraws
from fasttransfer.study.recipe import Recipe
from fasttransfer.training.optimisers import make_optimiser


class StageTrainer:
    """The trained stages of a network, with their optimiser.

    A network whose weights are bfloat16 reads rounded copies of those that are trained. The update writes them: no step
    casts a weight.

    Args:
        net: the network. Its stages from `start` + 1 on are trained; this class never runs the ones before.
        state: the values that the trained stages start from, by name.
        recipe: the optimiser and its settings.

    Attributes:
        weights: name -> float32, the weights that are trained, in the memory layout of the network's.
        optimiser: updates them.
    """

    def __init__(self, net: StagedNetwork, start: int, state: Mapping[str, Tensor], recipe: Recipe) -> None:
        self.net, self.start = net, start
        working = net.named_weights(start)
        self._working = list(working.values())
        self.weights = {
            name: w.detach() if w.dtype == torch.float32 else torch.empty_like(w, dtype=torch.float32)
            for name, w in working.items()
        }
        self._label_smoothing = recipe.label_smoothing
        # The next forward pass reads the weight itself, or its rounded copy.
        read = [
            own if w.dtype == torch.float32 else w.detach()
            for own, w in zip(self.weights.values(), self._working, strict=True)
        ]
        copies = read if any(w.dtype != torch.float32 for w in read) else ()
        self.optimiser = make_optimiser(recipe, self.weights, copies)
        self.load(state)

    def state(self) -> dict[str, Tensor]:
        """Return the state of the trained stages by name: float32 weights, and buffers."""
        return {**self.net.state(self.start), **self.weights}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set the state of the trained stages; that of the optimiser stays."""
        self.net.load(state, self.start)
        for name, own in self.weights.items():
            own.copy_(state[name])

    def step(self, x: Tensor, labels: Tensor, draws: StepDraws, lr: Tensor) -> Tensor:
        """Train on a batch; return its mean loss, float32 without dimensions.

        Args:
            x: the batch at cut `start`, see `Architecture.cut_shape`.
            labels: (N,) int64.
            draws: the random draws of the step.
            lr: the learning rate, float32 without dimensions, on the network's device.
        """
        loss, gradients = self._gradients(x, labels, draws)
        self.optimiser.step(gradients, lr)
        return loss

    def _gradients(self, x: Tensor, labels: Tensor, draws: StepDraws) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the batch's mean loss, and its gradients by the weights that the network reads."""
        return self.net.gradients(x, labels, draws, start=self.start, label_smoothing=self._label_smoothing)
