"""The operator against the rule by hand, its reference, and PyTorch's own checks of an operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fasttransfer.ops._sgd_step import sgd_step, sgd_step_reference

TYPES = [torch.float32, torch.bfloat16]
SHAPES = [(96, 3, 11, 11), (96,), (1, 2, 1, 3), (), (0, 5), (300, 999)]
NUMBERS = {"momentum": 0.9, "lr_scale": [1.0, 2.0, 0.5, 1.0, 1.0, 3.0], "decay": [0.1, 0.0, 0.2, 0.3, 0.1, 0.05]}


def draw(
    gradient: torch.dtype, copy: torch.dtype | None, shapes: list[Any] = SHAPES, device: str = "cpu"
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, velocities, gradients and copies; what has four dimensions lies in channels-last memory."""
    torch.manual_seed(0)

    def normal(shape: tuple[int, ...]) -> Tensor:
        format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.randn(shape).to(device, memory_format=format)

    weights, velocities = [normal(s) for s in shapes], [normal(s) for s in shapes]
    gradients = [normal(s).to(gradient) for s in shapes]
    copies = [] if copy is None else [torch.full_like(w, 7.0, dtype=copy) for w in weights]
    return weights, velocities, gradients, copies


def cloned(lists: Any) -> Any:
    return tuple([t.clone() for t in tensors] for tensors in lists)


def exact(weights: list[Tensor], velocities: list[Tensor], gradients: list[Tensor], lr: float) -> list[list[Tensor]]:
    """Weights and velocities after the step, in float64."""
    new: list[list[Tensor]] = [[], []]
    for w, v, g, scale, decay in zip(
        weights, velocities, gradients, NUMBERS["lr_scale"], NUMBERS["decay"], strict=True
    ):
        velocity = 0.9 * v.double() + lr * scale * (g.double() + decay * w.double())
        new[0].append(w.double() - velocity)
        new[1].append(velocity)
    return new


def error(got: list[Tensor], wanted: list[Tensor]) -> float:
    return max((g.double() - w).abs().max().item() for g, w in zip(got, wanted, strict=True) if g.numel())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gradient", TYPES)
@pytest.mark.parametrize("copy", [None, *TYPES])
def test_is_caffes_rule_as_exact_as_pytorch(device: str, gradient: torch.dtype, copy: torch.dtype | None) -> None:
    weights, velocities, gradients, copies = draw(gradient, copy, device=device)
    wanted = exact(weights, velocities, gradients, 0.03125)
    plain = cloned((weights, velocities, gradients, copies))
    lr = torch.tensor(0.03125, device=device)
    sgd_step(weights, velocities, gradients, copies, lr=lr, **NUMBERS)
    sgd_step_reference(*plain, lr, *NUMBERS.values())
    assert error(weights, wanted[0]) <= 2 * error(plain[0], wanted[0])
    assert error(velocities, wanted[1]) <= 2 * error(plain[1], wanted[1])
    for made, weight in zip(copies, weights, strict=bool(copies)):
        assert torch.equal(made, weight.to(made.dtype))


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 50_000), min_size=1, max_size=6),
    rounded=st.lists(st.booleans(), min_size=6, max_size=6),
    copied=st.sampled_from([None, *TYPES]),
)
def test_any_number_of_any_size(sizes: list[int], rounded: list[bool], copied: torch.dtype | None) -> None:
    weights, velocities, gradients, copies = draw(torch.float32, copied, [(size,) for size in sizes])
    gradients = [g.bfloat16() if r else g for g, r in zip(gradients, rounded, strict=False)]
    plain = cloned((weights, velocities, gradients, copies))
    numbers = {"momentum": 0.5, "lr_scale": [2.0] * len(sizes), "decay": [0.25] * len(sizes)}
    sgd_step(weights, velocities, gradients, copies, lr=torch.tensor(0.5), **numbers)
    sgd_step_reference(*plain, torch.tensor(0.5), *numbers.values())
    for got, wanted in zip((weights, velocities), plain[:2], strict=True):
        for g, w in zip(got, wanted, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6)
    for made, weight in zip(copies, weights, strict=bool(copies)):
        assert torch.equal(made, weight.to(made.dtype))


def test_a_copy_that_is_its_weight_stays_so() -> None:
    weights, velocities, gradients, copies = draw(torch.float32, torch.bfloat16)
    plain = cloned((weights, velocities, gradients))
    copies[1], copies[3] = weights[1], weights[3]
    sgd_step(weights, velocities, gradients, copies, lr=torch.tensor(0.1), **NUMBERS)
    sgd_step(*plain, lr=torch.tensor(0.1), **NUMBERS)
    for got, wanted in zip([*weights, *velocities], [*plain[0], *plain[1]], strict=True):
        assert torch.equal(got, wanted)
    for copy, weight in zip(copies, weights, strict=True):
        assert torch.equal(copy, weight.to(copy.dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_may_lie_differently(device: str) -> None:
    weights, velocities, gradients, _ = draw(torch.bfloat16, None, device=device)
    others = cloned((weights, velocities, gradients))
    others[2][0] = gradients[0].contiguous()
    others[2][5] = gradients[5].t().contiguous().t()
    assert others[2][0].stride() != gradients[0].stride()
    lr = torch.tensor(0.1, device=device)
    sgd_step(weights, velocities, gradients, lr=lr, **NUMBERS)
    sgd_step(*others, lr=lr, **NUMBERS)
    assert all(torch.equal(a, b) for a, b in zip(weights, others[0], strict=True))


def test_sgd_is_caffes_across_a_drop_of_the_rate() -> None:
    """v = m v + lr (g + wd w); w = w - v, by hand in Python floats, with the rate dropped half way."""
    w, b = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    vw, vb = torch.zeros_like(w), torch.zeros_like(b)
    hand_w, hand_b, hand_vw, hand_vb = 1.0, 0.5, 0.0, 0.0
    native_w, native_v = torch.tensor([1.0]), torch.zeros(1)
    torch_w = torch.nn.Parameter(w.clone())
    torch_sgd = torch.optim.SGD([torch_w], lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(20):
        lr = 0.1 if step < 10 else 0.01
        gw, gb = w * 3 + 1, b - 2
        hand_gw, hand_gb = hand_w * 3 + 1, hand_b - 2
        rate = torch.tensor(lr, dtype=torch.float64)
        sgd_step([w, b], [vw, vb], [gw, gb], lr=rate, momentum=0.9, lr_scale=[1.0, 2.0], decay=[0.01, 0.0])
        native_g = native_w * 3 + 1
        sgd_step([native_w], [native_v], [native_g], lr=rate.float(), momentum=0.9, lr_scale=[1.0], decay=[0.01])
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
    assert float(native_w) == pytest.approx(hand_w, abs=1e-6)
    assert abs(torch_w.item() - hand_w) > 1e-4  # and PyTorch's differs once it has dropped


@pytest.mark.parametrize("device", DEVICES)
def test_a_nan_in_the_gradient_is_seen_everywhere(device: str) -> None:
    weights, velocities, gradients, copies = draw(torch.bfloat16, torch.bfloat16, device=device)
    gradients[5][3, 3] = float("nan")
    sgd_step(weights, velocities, gradients, copies, lr=torch.tensor(0.1, device=device), **NUMBERS)
    for tensors in (weights, velocities, copies):
        assert [int(t.isnan().sum()) for t in tensors] == [0, 0, 0, 0, 0, 1]


def test_threads_change_nothing() -> None:
    start = draw(torch.bfloat16, torch.bfloat16, [(1_000_003,), (5,), (70_001,)])
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            lists = cloned(start)
            numbers = {"momentum": 0.9, "lr_scale": [1.0, 2.0, 1.0], "decay": [0.1, 0.0, 0.1]}
            sgd_step(*lists, lr=torch.tensor(0.1), **numbers)
            results.append([*lists[0], *lists[1], *lists[3]])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_autograd_notices_that_weights_changed() -> None:
    w = torch.randn(4, requires_grad=True)
    loss = (w * w).sum()
    sgd_step([w], [torch.zeros(4)], [torch.ones(4)], lr=torch.tensor(0.1), momentum=0.9, lr_scale=[1.0], decay=[0.0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("which", "tensor", "says"),
    [
        (0, torch.zeros(3, 4, dtype=torch.bfloat16), "weight 0 must be float32, not BFloat16"),
        (0, torch.zeros(3, 8)[:, ::2], "weight 0 must fill its memory"),
        (0, torch.zeros(1, 4).expand(3, 4), "weight 0 must fill its memory"),
        (1, torch.zeros(3, 4, dtype=torch.float64), "velocity 0 must be float32, not Double"),
        (1, torch.zeros(4, 3).t(), "velocity 0 must have the shape and strides of weight 0"),
        (2, torch.zeros(3, 4, dtype=torch.float16), "gradient 0 must be float32 or bfloat16, not Half"),
        (3, torch.zeros(3, 4, dtype=torch.float16), "copy 0 must be float32 or bfloat16, not Half"),
        (3, torch.zeros(3, 5), "copy 0 must have the shape and strides of weight 0"),
    ],
)
def test_bad_tensors(which: int, tensor: Tensor, says: str) -> None:
    lists = [[torch.zeros(3, 4)] for _ in range(4)]
    lists[which] = [tensor]
    with pytest.raises(RuntimeError, match=says):
        sgd_step(*lists, lr=torch.tensor(0.1), momentum=0.9, lr_scale=[1.0], decay=[0.0])


def test_bad_rates_and_lists() -> None:
    w, v, g = ([torch.zeros(3)] for _ in range(3))
    for lr in (torch.tensor([0.1, 0.1]), torch.tensor(1)):
        with pytest.raises(RuntimeError, match="lr must be one float32"):
            sgd_step(w, v, g, lr=lr, momentum=0.9, lr_scale=[1.0], decay=[0.0])
    operator = torch.ops.fasttransfer.sgd_step
    for lists in ((w, v, [], []), (w, [], g, []), (w, v, g, [*w, *w])):
        with pytest.raises(RuntimeError, match="every list must have one entry for each of the 1 weights"):
            operator(*lists, torch.tensor(0.1), 0.9, [1.0], [0.0])
    with pytest.raises(RuntimeError, match="every list"):
        operator(w, v, g, [], torch.tensor(0.1), 0.9, [1.0, 1.0], [0.0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("copy", [None, torch.bfloat16])
def test_opcheck(device: str, copy: torch.dtype | None) -> None:
    lists = draw(torch.bfloat16, copy, [(3, 5), (7,)], device)
    lr = torch.tensor(0.1, device=device)
    torch.library.opcheck(torch.ops.fasttransfer.sgd_step.default, (*lists, lr, 0.9, [1.0, 2.0], [0.1, 0.0]))


@pytest.mark.compiled
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break(device: str) -> None:
    def step(weights: list[Tensor], velocities: list[Tensor], copies: list[Tensor], x: Tensor, lr: Tensor) -> Tensor:
        gradients = [w * x for w in weights]
        sgd_step(weights, velocities, gradients, copies, lr=lr, momentum=0.9, lr_scale=[1.0, 2.0], decay=[0.1, 0.0])
        return weights[0].sum() + copies[0].float().sum()

    weights, velocities, _, copies = draw(torch.float32, torch.bfloat16, [(3, 5), (7,)], device)
    copies[1] = weights[1]
    others = cloned((weights, velocities, copies))
    others[2][1] = others[0][1]
    compiled = torch.compile(step, fullgraph=True)
    for rate in (0.1, 0.2):
        x, lr = torch.tensor(0.5, device=device), torch.tensor(rate, device=device)
        got, wanted = compiled(weights, velocities, copies, x, lr), step(*others, x, lr)
        torch.testing.assert_close(got, wanted)
    for a, b in zip([*weights, *velocities], [*others[0], *others[1]], strict=True):
        torch.testing.assert_close(a, b)
