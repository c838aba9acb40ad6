"""Caffe's optimiser, all parameters at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fasttransfer.ops import native

native.load()


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
    """Caffe's SGD, in place: v = momentum * v + lr * (g + decay * w); w = w - v; copy = w.

    The rate is inside the velocity: when it drops, what was gathered at the old rate still carries on.
    PyTorch's SGD applies the rate to the whole velocity and differs from there on.

    Args:
        weights, velocities: one tensor a parameter, float32, same shapes and strides, without gaps in memory. (Of
            float64, which no kernel knows, the step is taken in plain PyTorch.)
        gradients: likewise, float32 or bfloat16; one that lies in memory differently is rearranged first.
        copies: none, or one a parameter, bfloat16 or float32: what the next forward pass reads. A copy that is
            its weight itself stays so.
        lr: the rate of this step, float32 without dimensions, on the weights' device.
        lr_scale, decay: one number a parameter; `lr_scale` multiplies the rate.

    Raises:
        RuntimeError: another type, shape, layout or device; lists of different lengths.
    """
    if any(w.dtype == torch.float64 for w in weights):
        sgd_step_reference(weights, velocities, gradients, copies, lr, momentum, lr_scale, decay)
        return
    gradients = [_laid_out_as(w, g) for w, g in zip(weights, gradients, strict=True)]
    copied = [bool(copies) and copies[i] is not w for i, w in enumerate(weights)]
    # The operator copies all of its parameters or none.
    for wanted in (True, False):
        chosen = [i for i, is_copied in enumerate(copied) if is_copied == wanted]
        if chosen:
            torch.ops.fasttransfer.sgd_step(
                [weights[i] for i in chosen],
                [velocities[i] for i in chosen],
                [gradients[i] for i in chosen],
                [copies[i] for i in chosen] if wanted else [],
                lr,
                momentum,
                [lr_scale[i] for i in chosen],
                [decay[i] for i in chosen],
            )
    # Autograd refuses to use what it kept from before: it cannot see that an operator writes to its arguments.
    torch.autograd.graph.increment_version([*weights, *velocities, *copies])


def _laid_out_as(weight: Tensor, gradient: Tensor) -> Tensor:
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
    """What `sgd_step` computes, in plain PyTorch; it runs where there is no native kernel."""
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


def _fake(
    weights: Sequence[Tensor],
    velocities: Sequence[Tensor],
    gradients: Sequence[Tensor],
    copies: Sequence[Tensor],
    lr: Tensor,
    momentum: float,
    lr_scale: Sequence[float],
    decay: Sequence[float],
) -> None:
    pass


torch.library.impl("fasttransfer::sgd_step", "CompositeExplicitAutograd", sgd_step_reference)
torch.library.register_fake("fasttransfer::sgd_step", _fake)
