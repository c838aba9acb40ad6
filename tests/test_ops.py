"""Operators against the plain formulas, in float64 where they allow it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer import ops


def lrn_by_the_formula(y: Tensor) -> Tensor:
    """y / (1 + 1e-4 / 5 * sum over 5 neighbouring channels of y^2)^0.75, channel by channel."""
    out = torch.empty_like(y)
    for c in range(y.shape[1]):
        near = y[:, max(c - 2, 0) : c + 3]
        out[:, c] = y[:, c] / (1 + 1e-4 / 5 * (near * near).sum(1)) ** 0.75
    return out


@pytest.mark.parametrize("shape", [(2, 96, 11, 11), (1, 7, 8, 5), (3, 1, 3, 3), (2, 3, 10, 4)])
def test_relu_pool_lrn_is_the_formula_and_its_gradient(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 100).requires_grad_()
    ours = ops.relu_pool_lrn(x)
    plain = lrn_by_the_formula(F.max_pool2d(F.relu(x), 3, 2, ceil_mode=True))
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(plain)
    (gradient,) = torch.autograd.grad(ours, x, upstream)
    (expected,) = torch.autograd.grad(plain, x, upstream)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_lrn_is_pytorchs() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 20, 9, 9, dtype=torch.float64) * 50
    expected = F.local_response_norm(F.relu(F.max_pool2d(x, 3, 2, ceil_mode=True)), 5, alpha=1e-4, beta=0.75, k=1.0)
    torch.testing.assert_close(ops.relu_pool_lrn(x), expected, rtol=1e-12, atol=1e-12)


def test_bfloat16_is_normalised_in_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 9, 9, dtype=torch.bfloat16) * 100
    with torch.autocast("cpu", torch.bfloat16):
        ours = ops.relu_pool_lrn(x)
    exact = ops.relu_pool_lrn(x.double())
    assert ours.dtype == torch.bfloat16
    # One rounding to 8 bits of the exact result, and no more.
    assert ((ours.double() - exact).abs() <= exact.abs() * 2**-8).all()


@pytest.mark.parametrize(("side", "pooled"), [(55, 27), (27, 13), (13, 6), (18, 9), (9, 4), (4, 2), (3, 1), (6, 3)])
def test_pooling_rounds_its_output_up(side: int, pooled: int) -> None:
    x = torch.zeros(1, 1, side, side)
    x[..., -1, -1] = 5.0  # the last pixel is seen by the last window
    y = ops.relu_pool(x)
    assert y.shape == (1, 1, pooled, pooled)
    assert y[..., -1, -1] == 5.0


def test_activations_stay_in_channels_last_memory() -> None:
    x = torch.randn(2, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    assert ops.relu_pool_lrn(x).is_contiguous(memory_format=torch.channels_last)


def test_augment_crops_subtracts_scales_and_mirrors() -> None:
    torch.manual_seed(0)
    side, crop = 12, 7
    pictures = torch.randint(0, 256, (5, side, side, 3), dtype=torch.uint8)
    mean = torch.rand(side, side, 3) * 255
    top, left = torch.tensor([0, 5, 2, 3, 1]), torch.tensor([5, 0, 1, 4, 2])
    mirror = torch.tensor([False, True, False, True, True])
    ours = ops.augment(pictures, mean, top, left, mirror, crop=crop, scale=0.25)
    assert ours.shape == (5, 3, crop, crop)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    for i in range(5):
        y, x = int(top[i]), int(left[i])
        plain = (pictures[i].float() - mean)[y : y + crop, x : x + crop] * 0.25
        plain = plain.flip(1) if mirror[i] else plain
        assert torch.equal(ours[i], plain.permute(2, 0, 1))


def test_sgd_is_caffes_across_a_drop_of_the_rate() -> None:
    """v = m v + lr (g + wd w); w = w - v, by hand in Python floats, with the rate dropped half way."""
    w, b = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    vw, vb = torch.zeros_like(w), torch.zeros_like(b)
    hand_w, hand_b, hand_vw, hand_vb = 1.0, 0.5, 0.0, 0.0
    torch_w = torch.nn.Parameter(w.clone())
    torch_sgd = torch.optim.SGD([torch_w], lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(20):
        lr = 0.1 if step < 10 else 0.01
        gw, gb = w * 3 + 1, b - 2
        hand_gw, hand_gb = hand_w * 3 + 1, hand_b - 2
        ops.sgd_step([w, b], [vw, vb], [gw, gb], lr=[lr, 2 * lr], momentum=0.9, decay=[0.01, 0.0])
        hand_vw = 0.9 * hand_vw + lr * (hand_gw + 0.01 * hand_w)
        hand_vb = 0.9 * hand_vb + 2 * lr * hand_gb
        hand_w, hand_b = hand_w - hand_vw, hand_b - hand_vb
        torch_sgd.param_groups[0]["lr"] = lr
        torch_w.grad = torch_w.detach() * 3 + 1
        torch_sgd.step()
        if step == 9:
            assert torch_w.item() == pytest.approx(hand_w, abs=1e-12)  # the same while the rate stands
    assert float(w) == pytest.approx(hand_w, abs=1e-12)
    assert float(b) == pytest.approx(hand_b, abs=1e-12)
    assert abs(torch_w.item() - hand_w) > 1e-4  # and PyTorch's differs once it has dropped
