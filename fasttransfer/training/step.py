"""One training step of one network: loss, gradients, update. A cohort runs it for each of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer import ops
from fasttransfer.networks.caffenet import CaffeNet, StepDropout
from fasttransfer.study.recipe import Recipe


class StageTrainer:
    """The trained stages of a network, with the velocities of Caffe's SGD.

    In bfloat16 the network computes with rounded copies of its weights. The update writes them: no step casts a weight.

    Args:
        net: the network. Its stages `start` + 1 to 8 are trained; this class never runs the ones before.
        weights: float32, under Caffe's names, the values that the trained stages start from.
        recipe: momentum, decay, and the factors on learning rate and decay for biases.

    Attributes:
        weights: name -> float32, the weights that are trained, in the memory layout of the network's.
        velocities: name -> float32, their velocities.
    """

    def __init__(self, net: CaffeNet, start: int, weights: Mapping[str, Tensor], recipe: Recipe) -> None:
        self.net, self.start = net, start
        working = net.named_weights(start)
        self._working = list(working.values())
        self.weights = {
            name: w.detach() if w.dtype == torch.float32 else torch.empty_like(w, dtype=torch.float32)
            for name, w in working.items()
        }
        self.velocities = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        # The next forward pass reads the weight itself, or its rounded copy.
        read = [
            own if w.dtype == torch.float32 else w.detach()
            for own, w in zip(self.weights.values(), self._working, strict=True)
        ]
        self._copies = read if any(w.dtype != torch.float32 for w in read) else ()
        self._momentum = recipe.momentum
        biases = [name.endswith("bias") for name in working]
        self._lr_scale = [recipe.bias_lr if b else 1.0 for b in biases]
        self._decay = [recipe.weight_decay * (recipe.bias_decay if b else 1.0) for b in biases]
        self.load(weights)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Set the weights of the trained stages; velocities stay."""
        self.net.load(weights, self.start)
        for name, own in self.weights.items():
            own.copy_(weights[name])

    def step(self, x: Tensor, labels: Tensor, drop: StepDropout, lr: Tensor) -> Tensor:
        """Train on a batch; return its mean loss, float32 without dimensions.

        Args:
            x: the batch at cut `start`, see `Geometry.cut_shape`.
            labels: (N,) int64.
            drop: the step's dropout.
            lr: the learning rate, float32 without dimensions, on the network's device.
        """
        loss, gradients = self._gradients(x, labels, drop)
        ops.sgd_step(
            list(self.weights.values()),
            list(self.velocities.values()),
            gradients,
            self._copies,
            lr=lr,
            momentum=self._momentum,
            lr_scale=self._lr_scale,
            decay=self._decay,
        )
        return loss

    def _gradients(self, x: Tensor, labels: Tensor, drop: StepDropout) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the batch's mean loss, and its gradients by the weights that the network reads."""
        logits = self.net(x, start=self.start, drop=drop)
        loss = F.cross_entropy(logits.float(), labels)
        return loss.detach(), torch.autograd.grad(loss, self._working)
