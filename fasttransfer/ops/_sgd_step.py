"""A step of Caffe's SGD on all parameters at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fasttransfer.ops import native


@torch.no_grad()
def sgd_step(
    weights: Sequence[Tensor],
    velocities: Sequence[Tensor],
    gradients: Sequence[Tensor],
    copies: Sequence[Tensor] = (),
    *,
    lr: Tensor,
    momentum: float,
    lr_scale: Sequence[float],
    decay: Sequence[float],
) -> None:
    """Take a step of Caffe's SGD in place: v = momentum * v + lr * (g + decay * w); w = w - v; copy = w.

    The learning rate is inside the velocity: when it drops, the velocity still contains steps at the old one.
    PyTorch's SGD multiplies the whole velocity by the learning rate, and differs from the first drop on.

    Args:
        weights, velocities: one tensor per parameter, float32, same shapes and strides, without gaps in memory. (With
            float64, which no kernel supports, the step runs in plain PyTorch.)
        gradients: likewise, float32 or bfloat16; a gradient with other strides is rearranged first.
        copies: none, or one per parameter, bfloat16 or float32, for the next forward pass to read. A copy may be the
            weight itself.
        lr: the learning rate of this step, () float32 on the weights' device.
        lr_scale, decay: one number per parameter; `lr_scale` multiplies the learning rate.

    Raises:
        RuntimeError: a tensor has another type, shape, layout or device; the lists have different lengths.
    """
    if any(w.dtype == torch.float64 for w in weights):
        sgd_step_reference(weights, velocities, gradients, copies, lr, momentum, lr_scale, decay)
        return
    gradients = [_match_strides(w, g) for w, g in zip(weights, gradients, strict=True)]
    needs_copy = [bool(copies) and copies[i] is not w for i, w in enumerate(weights)]
    # The operator copies all of its parameters or none.
    for with_copies in (True, False):
        group = [i for i, needed in enumerate(needs_copy) if needed == with_copies]
        if group:
            torch.ops.fasttransfer.sgd_step(
                [weights[i] for i in group],
                [velocities[i] for i in group],
                [gradients[i] for i in group],
                [copies[i] for i in group] if with_copies else [],
                lr,
                momentum,
                [lr_scale[i] for i in group],
                [decay[i] for i in group],
            )
    # Autograd cannot see that an operator writes to its arguments; now it refuses to use tensors saved before.
    torch.autograd.graph.increment_version([*weights, *velocities, *copies])


def _match_strides(weight: Tensor, gradient: Tensor) -> Tensor:
    if gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)


def sgd_step_reference(
    weights: Sequence[Tensor],
    velocities: Sequence[Tensor],
    gradients: Sequence[Tensor],
    copies: Sequence[Tensor],
    lr: Tensor,
    momentum: float,
    lr_scale: Sequence[float],
    decay: Sequence[float],
) -> None:
    """Compute the operator in plain PyTorch: runs where there is no native kernel."""
    weights, velocities = list(weights), list(velocities)
    steps = torch._foreach_add(
        [g.to(w.dtype) for g, w in zip(gradients, weights, strict=True)], torch._foreach_mul(weights, list(decay))
    )
    torch._foreach_mul_(steps, list(lr_scale))
    torch._foreach_mul_(steps, lr)
    torch._foreach_mul_(velocities, momentum)
    torch._foreach_add_(velocities, steps)
    torch._foreach_sub_(weights, velocities)
    for copy, weight in zip(copies, weights, strict=bool(copies)):
        if copy is not weight:
            copy.copy_(weight)


native.register("sgd_step", sgd_step_reference, lambda *_: None)
