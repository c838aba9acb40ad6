"""Heads are plain softmax regressions, equal to the bit whatever heads train beside them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.probe import heads
from fasttransfer.probe.heads import Heads

CLASSES = 10


def images(count: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features like those behind a ReLU, around a centre of each class, and labels."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(count) % CLASSES
    return (centres[labels] + 2 * torch.randn(count, width, generator=random)).relu().bfloat16(), labels


def orders(count: int, batch: int, steps: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    if batch == count:
        return [torch.arange(count)] * steps
    return [torch.randperm(count, generator=random)[:batch] for _ in range(steps)]


def trained(x: Tensor, y: Tensor, batch: int, pairs: list[tuple[float, float]], dtype: torch.dtype) -> Heads:
    rates, decays = zip(*pairs, strict=True)
    return heads.train(x, y, CLASSES, orders(len(x), batch, 40), rates=rates, decays=decays, dtype=dtype)


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    """Train heads in one thread, as the sweep does: the division of a product among threads may depend on its size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "batch", "width"), [(20, 20, 64), (300, 64, 64), (300, 64, 1000), (90, 64, 333)])
def test_a_head_in_company_is_the_head_alone(dtype: torch.dtype, count: int, batch: int, width: int) -> None:
    x, y = images(count, width)
    pairs = list(itertools.product((0.3, 1.0, 3.0, 10.0, 30.0), (0.0, 1e-5, 1e-4, 1e-3)))
    assert len(pairs) == 20
    together = trained(x, y, batch, pairs, dtype)
    hits = heads.score(together, x, y)
    reversed_ = trained(x, y, batch, pairs[::-1], dtype)
    for i in (0, 7, 19):
        alone = trained(x, y, batch, [pairs[i]], dtype)
        few = trained(x, y, batch, [pairs[3], pairs[i], pairs[11]], dtype)
        for other, j in ((alone, 0), (few, 1), (reversed_, 19 - i)):
            assert torch.equal(other.weights[j], together.weights[i])
            assert torch.equal(other.biases[j], together.biases[i])
            assert heads.score(other, x, y)[0][j] == hits[0][i]
    assert not torch.equal(together.weights[0], together.weights[1]), "a decay that changes nothing"


def plain(x: Tensor, y: Tensor, batches: list[Tensor], rate: float, decay: float) -> tuple[Tensor, Tensor]:
    """The same in autograd and plain PyTorch, float64: Caffe's momentum, a rate that falls in a straight line."""
    x = x.double()
    x = x - x.mean(0)
    x = x / x.square().sum(1).mean().sqrt()
    w = torch.zeros(CLASSES, x.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)
    v, u = torch.zeros_like(w), torch.zeros_like(b)
    for step, ids in enumerate(batches):
        loss = F.cross_entropy(x[ids] @ w.t() + b, y[ids]) + decay / 2 * w.square().sum()
        gw, gb = torch.autograd.grad(loss, (w, b))
        now = rate * (1 - step / len(batches))
        v, u = 0.9 * v + now * gw, 0.9 * u + now * gb
        with torch.no_grad():
            w -= v
            b -= u
    return w.detach(), b.detach()


@pytest.mark.parametrize(("count", "batch", "width"), [(300, 64, 80), (20, 20, 500)])
def test_a_head_is_a_plain_softmax_regression(count: int, batch: int, width: int) -> None:
    x, y = images(count, width)
    pairs = [(0.3, 0.0), (3.0, 1e-2)]
    found = trained(x, y, batch, pairs, torch.float32)
    assert (found.basis is not None) == (count < width)
    for i, (rate, decay) in enumerate(pairs):
        w, b = plain(x, y, orders(count, batch, 40), rate, decay)
        whole = found.weights[i] if found.basis is None else found.weights[i] @ found.basis.t()
        torch.testing.assert_close(whole.double(), w, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.biases[i].double(), b, rtol=1e-3, atol=1e-4)


def test_the_basis_of_few_examples_changes_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images(20, 700)
    new, wanted = images(400, 700, seed=5)
    pairs = [(1.0, 1e-4), (10.0, 0.0)]
    with_basis = trained(x, y, 20, pairs, torch.float32)
    monkeypatch.setattr(heads, "_is_basis_cheaper", lambda *sizes: False)
    without = trained(x, y, 20, pairs, torch.float32)
    assert with_basis.basis is not None
    assert without.basis is None
    one, other = heads.score(with_basis, new, wanted), heads.score(without, new, wanted)
    assert torch.equal(one[0], other[0])
    torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=0)


def test_scores_are_hits_and_losses() -> None:
    x, y = images(300, 64)
    new, wanted = images(1500, 64, seed=5)  # more than are scored at a time
    found = trained(x, y, 64, [(1.0, 0.0), (3.0, 1e-3)], torch.float32)
    hits, losses = heads.score(found, new, wanted)
    for i in range(2):
        logits = ((new.float() - found.mean) * found.scale) @ found.weights[i].t() + found.biases[i]
        assert hits[i] == (logits.argmax(1) == wanted).sum()
        assert float(losses[i]) == pytest.approx(float(F.cross_entropy(logits, wanted, reduction="sum")), rel=1e-4)
    assert hits.min() > 0.5 * len(new), "they learned something"


def test_features_that_are_all_alike_make_no_trouble() -> None:
    x = torch.ones(20, 16, dtype=torch.bfloat16)
    found = trained(x, torch.arange(20) % CLASSES, 20, [(1.0, 0.0)], torch.float32)
    assert found.weights.isfinite().all()
    assert found.biases.isfinite().all()
