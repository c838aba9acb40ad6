"""Softmax regressions that learn from the same batches, stacked into one matrix.

The heads of a stack see the same examples in the same order and differ in learning rate and weight decay only. Their
weights are rows of one matrix, so that a step is two matrix products for all of them. No operation mixes heads.

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
# Rows of a stack: libraries sum the products of narrower matrices in an order that depends on their width. MKL does
# below 64 columns on AMD and below 192 on Intel.
_MIN_ROWS = 192
_SCORE_BATCH = 1024


@dataclass(frozen=True, eq=False)
class Heads:
    """Trained heads, and the transformation of the features that they read.

    Attributes:
        weights: (H, C, E) float32, or (H, C, n) on the axes of `basis`; biases: (H, C) float32.
        mean: (E,) float32, of the features that they learned from; scale: () float32, a factor.
        basis: (E, n) float32, orthonormal columns that span the training features; None: the heads read all E values.
    """

    weights: Tensor
    biases: Tensor
    mean: Tensor
    scale: Tensor
    basis: Tensor | None

    def transform(self, features: Tensor) -> Tensor:
        """Return (N, E) features as the heads read them: (N, E) or (N, n) float32."""
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
    """Train one head for each pair of `rates` and `decays`, all from zero, by momentum SGD.

    The loss is the mean cross-entropy plus half the decay times the squared weights, without the biases. The learning
    rate falls linearly to zero.

    Args:
        features: (n, E), the training examples; labels: (n,) int64.
        batches: (B,) int64 positions in them, one per step.
        rates, decays: learning rate and weight decay of each head.
        dtype: of the matrix products; weights and velocities are float32.
    """
    count, device = len(rates), features.device
    heads = max(count, -(-_MIN_ROWS // classes))
    rates, decays = [*rates, *[0.0] * (heads - count)], [*decays, *[0.0] * (heads - count)]
    mean, scale = compute_centring(features)
    x = (features.float() - mean) * scale
    basis = None
    if _is_basis_cheaper(len(batches[0]) * len(batches), classes, *x.shape):
        # Gradient descent from zero never leaves the span of the examples, so the heads need no other coordinates.
        basis, triangle = torch.linalg.qr(x.t())
        x = triangle.t()
    x_ne = x.to(dtype)
    weights = torch.zeros(heads * classes, x_ne.shape[1], device=device)
    velocities = torch.zeros_like(weights)
    copies = weights if dtype == torch.float32 else weights.to(dtype)
    split = [list(t.split(classes)) for t in (weights, velocities, copies)]
    biases, bias_velocities = torch.zeros(heads * classes, device=device), torch.zeros(heads * classes, device=device)
    bias_rates = torch.tensor(rates, device=device).repeat_interleave(classes)
    shares = torch.arange(len(batches), 0, -1, device=device) / len(batches)
    targets = F.one_hot(labels, classes).float()[:, None]
    for step, ids in enumerate(batches):
        x_be, target = (x_ne, targets) if len(ids) == len(x_ne) else (x_ne[ids], targets[ids])
        logits = (x_be @ copies.t()).float().add_(biases).view(len(x_be), heads, classes)
        errors = F.softmax(logits, dim=2).sub_(target).div_(len(x_be)).view(len(x_be), -1)
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
    return Heads(weights.view(heads, classes, -1)[:count], biases.view(heads, classes)[:count], mean, scale, basis)


def _is_basis_cheaper(images: int, classes: int, examples: int, width: int) -> bool:
    """Return whether a basis costs less than it saves a single head over `images` images of all steps.

    The number of heads must not decide: a head computes the same bits whatever is trained beside it.
    """
    return examples * examples * width < images * classes * (width - examples)


def compute_centring(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean, (E,), and the factor, (), that give features mean 0 and root mean square length 1; float32.

    A factor per feature would have to be estimated from as few examples, and would amplify rare features.
    """
    x = features.float()
    mean = x.mean(0)
    length = (x - mean).square_().sum(1).mean().sqrt()
    return mean, length.clamp_min(torch.finfo(torch.float32).tiny).reciprocal()


@torch.no_grad()
def score(heads: Heads, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of images that each head gets right, and the sum of their cross-entropies; both (H,) float64.

    Args:
        features: (N, E); labels: (N,) int64.
    """
    count, classes, width = heads.weights.shape
    padding = max(0, _MIN_ROWS - count * classes)
    weights = F.pad(heads.weights.reshape(-1, width), (0, 0, 0, padding)).t()
    biases = F.pad(heads.biases.reshape(-1), (0, padding))
    hits, losses = torch.zeros(2, count, dtype=torch.float64, device=features.device)
    for x, target in zip(features.split(_SCORE_BATCH), labels.split(_SCORE_BATCH), strict=True):
        logits = torch.addmm(biases, heads.transform(x), weights)[:, : count * classes].unflatten(1, (count, classes))
        hits += (logits.argmax(2) == target[:, None]).sum(0)
        loss = F.cross_entropy(logits.transpose(1, 2), target[:, None].expand(-1, count), reduction="none")
        losses += loss.double().sum(0)
    return hits, losses
