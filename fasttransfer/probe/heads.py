"""Softmax regressions that learn from the same batches, stacked into one matrix.

The heads of a stack see the same examples in the same order and differ in rate and decay only: their weights lie below
each other, so that a step is two matrix products for all of them. What a head computes is its own rows of that matrix;
no operation mixes heads.

Shapes: B examples of a batch, E features, H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer import ops

MOMENTUM = 0.9
_LEAST_ROWS = 64  # of a stack: libraries sum the products of narrower matrices in another order, by their width
_ROWS = 1024  # images that are scored at a time


@dataclass(frozen=True, eq=False)
class Heads:
    """Trained heads, and what features are brought to before they see them.

    Attributes:
        weights: (H, C, E) float32, or (H, C, n) on the axes of `basis`; biases: (H, C) float32.
        mean: (E,) float32, of the features that they learned from; scale: a factor, float32 without dimensions.
        basis: (E, n) float32, orthonormal columns that span what they learned from; None: they see all E values.
    """

    weights: Tensor
    biases: Tensor
    mean: Tensor
    scale: Tensor
    basis: Tensor | None

    def seen(self, features: Tensor) -> Tensor:
        """(N, E) features as the heads see them, float32."""
        x = (features.float() - self.mean) * self.scale
        return x if self.basis is None else x @ self.basis


@torch.no_grad()
def train(
    features: Tensor,
    labels: Tensor,
    classes: int,
    batches: Sequence[Tensor],
    *,
    rates: Sequence[float],
    decays: Sequence[float],
    dtype: torch.dtype,
) -> Heads:
    """Trains one head for each pair of `rates` and `decays`, all from zero, by momentum SGD.

    The loss is the mean cross-entropy plus half the decay times the squared weights, without the biases. The rate falls
    in a straight line to nothing.

    Args:
        features: (n, E), what the heads learn from; labels: (n,) int64.
        batches: (B,) int64 positions in them, a step each.
        rates, decays: (H,) numbers.
        dtype: of the matrix products; weights and velocities are float32.
    """
    asked, where = len(rates), features.device
    heads = max(asked, -(-_LEAST_ROWS // classes))
    rates, decays = [*rates, *[0.0] * (heads - asked)], [*decays, *[0.0] * (heads - asked)]
    mean, scale = centre_of(features)
    x = (features.float() - mean) * scale
    basis = None
    if _spanned(len(batches[0]) * len(batches), classes, *x.shape):
        # Gradient descent from zero never leaves the span of the examples: their coordinates in it are all there is.
        basis, triangle = torch.linalg.qr(x.t())
        x = triangle.t()
    x_ne = x.to(dtype)
    weights = torch.zeros(heads * classes, x_ne.shape[1], device=where)
    velocities = torch.zeros_like(weights)
    copies = weights if dtype == torch.float32 else weights.to(dtype)
    split = [list(t.split(classes)) for t in (weights, velocities, copies)]
    biases, bias_velocities = torch.zeros(heads * classes, device=where), torch.zeros(heads * classes, device=where)
    bias_rates = torch.tensor(rates, device=where).repeat_interleave(classes)
    shares = torch.arange(len(batches), 0, -1, device=where) / len(batches)
    answers = F.one_hot(labels, classes).float()[:, None]
    for step, ids in enumerate(batches):
        whole = len(ids) == len(x_ne)
        x_be, wanted = (x_ne, answers) if whole else (x_ne[ids], answers[ids])
        logits = (x_be @ copies.t()).float().add_(biases).view(len(x_be), heads, classes)
        errors = F.softmax(logits, dim=2).sub_(wanted).div_(len(x_be)).view(len(x_be), -1)
        gradients = errors.to(dtype).t() @ x_be
        ops.sgd_step(
            split[0],
            split[1],
            gradients.split(classes),
            split[2],
            lr=shares[step],
            momentum=MOMENTUM,
            lr_scale=rates,
            decay=decays,
        )
        bias_velocities.mul_(MOMENTUM).addcmul_(errors.t().contiguous().sum(1).mul_(shares[step]), bias_rates)
        biases.sub_(bias_velocities)
    return Heads(weights.view(heads, classes, -1)[:asked], biases.view(heads, classes)[:asked], mean, scale, basis)


def _spanned(shown: int, classes: int, examples: int, width: int) -> bool:
    """Whether a basis costs less than it saves one head; how many heads there are must not change what one computes."""
    return examples * examples * width < shown * classes * (width - examples)


def centre_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """What features are brought to: their mean to zero, their root mean square length to one.

    A number of its own for each feature would have to be estimated from as few examples, and makes the rare ones loud.

    Returns:
        the mean, (E,), and the factor, without dimensions; float32.
    """
    x = features.float()
    mean = x.mean(0)
    length = (x - mean).square_().sum(1).mean().sqrt()
    return mean, length.clamp_min(torch.finfo(torch.float32).tiny).reciprocal()


@torch.no_grad()
def score(heads: Heads, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the images each head gets right, and the sum of their cross-entropies; both (H,) float64.

    Args:
        features: (N, E); labels: (N,) int64.
    """
    count, classes, width = heads.weights.shape
    idle = max(0, _LEAST_ROWS - count * classes)
    weights, biases = (
        F.pad(heads.weights.reshape(-1, width), (0, 0, 0, idle)).t(),
        F.pad(heads.biases.reshape(-1), (0, idle)),
    )
    hits, losses = torch.zeros(2, count, dtype=torch.float64, device=features.device)
    for x, wanted in zip(features.split(_ROWS), labels.split(_ROWS), strict=True):
        logits = torch.addmm(biases, heads.seen(x), weights)[:, : count * classes].unflatten(1, (count, classes))
        hits += (logits.argmax(2) == wanted[:, None]).sum(0)
        found = F.cross_entropy(logits.transpose(1, 2), wanted[:, None].expand(-1, count), reduction="none")
        losses += found.double().sum(0)
    return hits, losses
