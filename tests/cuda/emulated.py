"""Tests of the CUDA kernels on the CPU; test_emulated.py compiles them and runs this file under the sanitizers.

Every case runs with the threads and blocks in several orders and must give the same bits.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.ops import native
from fasttransfer.ops._dropout import dropout_reference
from fasttransfer.ops._pack_features import pack_reference

LIBRARY = os.environ["FASTTRANSFER_EMULATED"]
ORDERS = [0, 1, 2]  # ascending, descending, random
FLOATS = [torch.float32, torch.bfloat16]

for name, schema in native.SCHEMAS.items():
    torch.library.define(f"fasttransfer_emulated::{name}", schema)
torch.ops.load_library(LIBRARY)
emulated: Any = torch.ops.fasttransfer_emulated
set_order = ctypes.CDLL(LIBRARY).emulation_order


def in_every_order(function: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
    """Return the result of `function`, which must not depend on the order of the threads."""
    results = []
    for order in ORDERS:
        set_order(order)
        results.append([tensor.clone() for tensor in function()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.stride() == b.stride()
            assert torch.equal(bits(a), bits(b))
    return results[0]


def bits(x: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.view(integers[x.element_size()])


def assert_as_good(ours: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The error is at most twice that of plain PyTorch in the same precision.

    Of few elements PyTorch may get each right by chance: a rounding to bfloat16, or a few in float32, always pass.
    """
    assert ours.shape == exact.shape
    assert ours.dtype == plain.dtype
    if exact.numel() == 0:
        return
    worst = (plain.double() - exact).abs().max()
    roundings = 0.5 if ours.dtype == torch.bfloat16 else 4
    allowed = 2 * worst + roundings * torch.finfo(ours.dtype).eps * exact.abs().max()
    assert (ours.double() - exact).abs().max() <= allowed


def channels_last(x: Tensor, *, offset: int = 0) -> Tensor:
    """A copy in channels-last memory that begins `offset` elements after an address of 16 bytes."""
    n, c, h, w = x.shape
    memory = torch.empty(x.numel() + offset, dtype=x.dtype)[offset:].view(n, h, w, c).permute(0, 3, 1, 2)
    return memory.copy_(x)


# dropout


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
@pytest.mark.parametrize("offset", [0, 1])
def test_dropout_is_the_reference(n: int, dtype: torch.dtype, offset: int) -> None:
    x = torch.randn(n + offset, dtype=torch.float64).to(dtype)[offset:]
    at = torch.tensor(2**40 + 3)
    for key, p in ((-5, 0.3), (2**62, 0.0), (1, 0.999)):
        (y,) = in_every_order(lambda key=key, p=p: [emulated.dropout(x, key, at, p)])
        assert torch.equal(y, dropout_reference(x, key % 2**64, at, p))


def test_dropout_refuses() -> None:
    x, at = torch.ones(4), torch.tensor(0)
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(RuntimeError, match="p must be at least 0 and below 1"):
            emulated.dropout(x, 0, at, p)
    with pytest.raises(RuntimeError, match="contiguous"):
        emulated.dropout(torch.ones(3, 4).t(), 0, at, 0.5)
    with pytest.raises(RuntimeError, match="at must be one int64"):
        emulated.dropout(x, 0, torch.tensor(0.0), 0.5)
    with pytest.raises(RuntimeError, match="float32, bfloat16 or float64"):
        emulated.dropout(x.half(), 0, at, 0.5)


# augment


def augmented(
    images: Tensor, rows: Tensor, mean: Tensor, top: Tensor, left: Tensor, mirror: Tensor, crop: int, block: int,
    side: int, scale: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Image by image, as the docstring of `ops.augment` says."""
    x = torch.zeros(len(rows), side * block, side * block, 3)
    kept = min(crop, side * block)
    for i, row in enumerate(rows):
        cut = (slice(top[i], top[i] + crop), slice(left[i], left[i] + crop))
        view = (images[row][cut].float() - mean[cut]) * scale
        x[i, :kept, :kept] = (view.flip(1) if mirror[i] else view)[:kept, :kept]
    x = x.view(len(rows), side, block, side, block, 3).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(len(rows), side, side, 3 * block * block).to(dtype).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("store", "crop", "block", "side"),
    [(12, 7, 1, 7), (12, 7, 1, 9), (12, 7, 1, 5), (12, 11, 4, 3), (12, 12, 4, 3), (13, 10, 3, 5), (20, 15, 4, 4),
     (5, 5, 2, 2), (3, 1, 1, 1)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [0, 1, 6])
def test_augment_is_the_formula(store: int, crop: int, block: int, side: int, dtype: torch.dtype, count: int) -> None:
    images = torch.randint(0, 256, (5, store, store, 3), dtype=torch.uint8)
    mean = torch.rand(store, store, 3) * 255
    rows = torch.randint(0, 5, (count,))
    top, left = torch.randint(0, store - crop + 1, (2, count))
    mirror = torch.rand(count) < 0.5
    (ours,) = in_every_order(
        lambda: [emulated.augment([images], rows, mean, top, left, mirror, crop, block, side, 0.017, dtype)]
    )
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours, augmented(images, rows, mean, top, left, mirror, crop, block, side, 0.017, dtype))


def test_augment_stays_inside_the_store() -> None:
    """Indices that cannot be checked without waiting for the GPU are clamped to the edge."""
    images, mean = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8), torch.zeros(8, 8, 3)
    mirror = torch.zeros(4, dtype=torch.bool)
    wild = torch.tensor([-1, 2**40, -(2**40), 99])
    edge = torch.tensor([0, 2, 0, 2])
    ours = emulated.augment([images], wild, mean, wild, wild, mirror, 6, 1, 6, 1.0, torch.float32)
    assert torch.equal(ours, augmented(images, edge, mean, edge, edge, mirror, 6, 1, 6, 1.0, torch.float32))


def test_augment_refuses() -> None:
    images, mean = torch.zeros(3, 8, 8, 3, dtype=torch.uint8), torch.zeros(8, 8, 3)
    where, mirror = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    good = ([images], where, mean, where, where, mirror, 6, 1, 6, 1.0, torch.float32)
    emulated.augment(*good)
    for i, bad, says in [
        (0, [images, images], "must be one shard, not 2"),
        (0, [images.float()], "uint8, contiguous"),
        (0, [images[:0]], "the shard is empty"),
        (1, where.int(), "rows must be 2 int64"),
        (2, mean.double(), "mean must be"),
        (3, where[:1], "top must be 2 int64"),
        (5, where, "mirror must be 2 bool"),
        (6, 9, "crop must lie in 1 to 8, not 9"),
        (7, 0, "at least 1, not 0"),
        (8, 100_000, "too large"),
        (10, torch.float16, "float32 or bfloat16"),
    ]:
        with pytest.raises(RuntimeError, match=says):
            emulated.augment(*good[:i], bad, *good[i + 1 :])


# pack_features and unpack_features


def sparse(images: int, elements: int, share: float, offset: int = 0) -> Tensor:
    """Random features, `share` of them not zero, that begin `offset` elements after an address of 16 bytes."""
    generator = torch.Generator().manual_seed(images + elements)
    x = torch.randn(images * elements + offset, generator=generator)
    x[torch.rand(x.shape, generator=generator) >= share] = 0.0
    return x.bfloat16()[offset:].view(images, elements)


@pytest.mark.parametrize(
    ("images", "elements", "share", "offset"),
    [(0, 64, 0.3, 0), (3, 0, 0.3, 0), (3, 1, 0.3, 0), (3, 8, 0.3, 0), (3, 63, 0.3, 0), (3, 64, 0.3, 0),
     (3, 100, 0.3, 0), (2, 2047, 0.3, 0), (2, 2048, 0.3, 0), (2, 2048, 0.3, 1), (2, 2049, 0.3, 0), (2, 6400, 0.3, 0),
     (1, 4096, 0.0, 0), (1, 4096, 1.0, 0), (3, 104, 1.0, 1)],
)  # fmt: skip
def test_features_are_packed_and_unpacked(images: int, elements: int, share: float, offset: int) -> None:
    x = sparse(images, elements, share, offset)
    packed = in_every_order(lambda: emulated.pack_features(x))
    for ours, expected in zip(packed, pack_reference(x), strict=True):
        assert torch.equal(bits(ours), bits(expected))
    for rows in (torch.arange(images), torch.arange(images).flip(0).repeat(2)):
        (y,) = in_every_order(lambda rows=rows: [emulated.unpack_features(*packed, rows, elements)])
        assert torch.equal(bits(y), bits(x[rows]))


def test_features_of_more_tiles_than_one_scan_takes() -> None:
    x = sparse(600, 9, 0.4)
    packed = emulated.pack_features(x)
    assert torch.equal(packed[2], pack_reference(x)[2])
    assert torch.equal(bits(packed[1]), bits(pack_reference(x)[1]))


def test_features_that_do_not_belong_together_are_read_safely() -> None:
    """Indices that cannot be checked without waiting for the GPU are clamped to the edge, or give zero."""
    x = sparse(3, 3000, 0.5)
    mask, values, offsets = emulated.pack_features(x)
    wild = torch.tensor([-1, 99, 1])
    assert torch.equal(emulated.unpack_features(mask, values, offsets, wild, 3000), x[[0, 2, 1]])
    rows = torch.arange(3)
    assert not emulated.unpack_features(mask, values[:0], offsets, rows, 3000).any()
    far = torch.tensor([-(2**50), 2**50, 0, 0])
    assert not emulated.unpack_features(mask, values, far, rows, 3000)[:2].any()
    full = torch.full_like(mask, 255)
    assert torch.equal(emulated.unpack_features(full, values, offsets, rows, 3000)[0], values[:3000])


def test_features_refuse() -> None:
    x = sparse(3, 100, 0.5)
    for bad, says in [(x.float(), "must be bfloat16, not Float"), (x[0], "contiguous"), (x[:, ::2], "contiguous")]:
        with pytest.raises(RuntimeError, match=says):
            emulated.pack_features(bad)
    good = (*emulated.pack_features(x), torch.arange(3), 100)
    for i, bad, says in [
        (0, good[0].int(), "mask must be"),
        (0, good[0][:, :8], "mask must be"),
        (0, torch.zeros(49, dtype=torch.uint8)[1:].view(3, 16), "begin at an address of 8 bytes"),
        (1, good[1].float(), "values must be bfloat16"),
        (2, good[2][:3], "offsets must be 4 int64"),
        (3, good[3].int(), "rows must be int64"),
        (4, -1, "elements must lie in"),
        (4, 129, "mask must be"),
    ]:
        with pytest.raises(RuntimeError, match=says):
            emulated.unpack_features(*good[:i], bad, *good[i + 1 :])
    with pytest.raises(RuntimeError, match="none is there"):
        emulated.unpack_features(good[0][:0], good[1], good[2][:1], good[3], 100)


# sgd_step


@pytest.mark.parametrize("gradient_type", FLOATS)
@pytest.mark.parametrize("copy_type", [None, *FLOATS])
def test_sgd_step_is_the_formula(gradient_type: torch.dtype, copy_type: torch.dtype | None) -> None:
    shapes = [(1,), (3,), (4,), (4096,), (4099,), (0,), (), (5, 3, 2, 2), *[(i + 2,) for i in range(30)]]
    before = [torch.randn(shape) for shape in shapes]
    before[7] = before[7].contiguous(memory_format=torch.channels_last)
    before[1] = torch.randn(4)[1:]  # not at an address of 16 bytes
    velocity = [torch.randn_like(w) for w in before]
    gradients = [torch.randn_like(w).to(gradient_type) for w in before]
    lr_scale, decay = [1.0 + i % 2 for i in range(len(shapes))], [0.1 * (i % 3) for i in range(len(shapes))]
    rate = torch.tensor(0.125)

    def step() -> list[Tensor]:
        w = [torch.empty_like(t).copy_(t) if i != 1 else torch.empty(4)[1:].copy_(t) for i, t in enumerate(before)]
        v = [torch.empty_like(t).copy_(t) for t in velocity]
        copies = [] if copy_type is None else [torch.empty_like(t, dtype=copy_type) for t in before]
        emulated.sgd_step(w, v, gradients, copies, rate, 0.9, lr_scale, decay)
        return [*w, *v, *copies]

    done = in_every_order(step)
    count = len(shapes)
    for i in range(count):
        w, v, g = before[i].double(), velocity[i].double(), gradients[i].double()
        v = 0.9 * v + 0.125 * lr_scale[i] * (g + decay[i] * w)
        torch.testing.assert_close(done[count + i].double(), v, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(done[i].double(), w - v, rtol=1e-6, atol=1e-6)
        if copy_type is not None:
            assert torch.equal(done[2 * count + i], done[i].to(copy_type))


def test_sgd_step_leaves_a_copy_that_is_the_weight() -> None:
    w, v, g = torch.ones(10), torch.zeros(10), torch.ones(10)
    emulated.sgd_step([w], [v], [g], [w], torch.tensor(0.5), 0.9, [1.0], [0.0])
    assert torch.equal(w, torch.full((10,), 0.5))


def test_sgd_step_refuses() -> None:
    w = torch.ones(4, 6)
    good = ([w], [w.clone()], [w.clone()], [w.clone()], torch.tensor(0.1), 0.9, [1.0], [0.0])
    emulated.sgd_step(*good)
    for i, bad, says in [
        (0, [w.double()], "weight 0 must be float32, not Double"),
        (0, [torch.ones(8, 6)[::2]], "without gaps"),
        (1, [], "one entry for each of the 1 weights"),
        (2, [torch.ones(6, 4).t()], "gradient 0 must have the shape and strides"),
        (3, [w.half()], "copy 0 must be float32 or bfloat16"),
        (4, torch.tensor(0.1, dtype=torch.float64), "lr must be one float32"),
        (6, [1.0, 2.0], "one entry for each"),
    ]:
        with pytest.raises(RuntimeError, match=says):
            emulated.sgd_step(*good[:i], bad, *good[i + 1 :])


# relu_pool and relu_pool_lrn

# Channels that are and are not a multiple of what 16 bytes hold, and more than a slice of them; sides that the windows
# fill and that they reach beyond, and more than a tile.
SHAPES = [
    (2, 96, 11, 11), (1, 256, 5, 7), (2, 7, 8, 5), (3, 1, 3, 3), (2, 2, 10, 4), (1, 8, 15, 16), (1, 12, 29, 31),
    (1, 136, 9, 6), (1, 97, 6, 6), (1, 65, 3, 4), (2, 16, 14, 14), (1, 24, 30, 3), (0, 8, 9, 9), (2, 0, 9, 9),
]  # fmt: skip


def lrn(p: Tensor) -> Tensor:
    """p / (1 + 1e-4 / 5 * sum over 5 neighbouring channels of p^2)^0.75."""
    squares = F.pad((p * p).movedim(1, -1), (2, 2))
    return p / (1 + 1e-4 / 5 * squares.unfold(-1, 5, 1).sum(-1).movedim(-1, 1)) ** 0.75


def composite(x: Tensor, bias: Tensor, normalise: bool) -> Tensor:
    pooled = F.relu(F.max_pool2d(x, 3, 2, ceil_mode=True) + bias.view(-1, 1, 1))
    return lrn(pooled) if normalise else pooled


def forward_and_backward(x: Tensor, bias: Tensor, gradient: Tensor, normalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dx, dbias) of the composite in the arguments' own precision."""
    if x.shape[1] == 0:
        return gradient, torch.zeros_like(x), torch.zeros_like(bias)
    x, bias = x.clone().requires_grad_(), bias.clone().requires_grad_()
    y = composite(x, bias, normalise)
    return y.detach(), *torch.autograd.grad(y, (x, bias), gradient)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x = channels_last((torch.randn(shape, generator=generator) * 100).to(dtype), offset=offset)
    bias = torch.randn(c, generator=generator) * 50
    pooled = (n, c, -(-(h - 3) // 2) + 1, -(-(w - 3) // 2) + 1)
    return x, bias, channels_last(torch.randn(pooled, generator=generator).to(dtype), offset=offset)


def run_both(x: Tensor, bias: Tensor, gradient: Tensor, normalise: bool) -> list[Tensor]:
    """[y, argmax, dx, dbias, pooled if normalised]"""
    h, w = x.shape[2:]
    if normalise:
        y, pooled, argmax = emulated.relu_pool_lrn(x, bias, True)
        return [y, argmax, *emulated.relu_pool_lrn_backward(gradient, pooled, argmax, h, w), pooled]
    y, argmax = emulated.relu_pool(x, bias, True)
    return [y, argmax, *emulated.relu_pool_backward(gradient, argmax, h, w)]


# Beginning at an address that allows 16 bytes at once, and not.
PLACED = [(shape, 0) for shape in SHAPES] + [(shape, 1) for shape in SHAPES if shape[1] in (12, 16, 136)]


@pytest.mark.parametrize(("shape", "offset"), PLACED, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("normalise", [False, True])
def test_pooling_and_its_gradient(shape: tuple[int, ...], dtype: torch.dtype, normalise: bool, offset: int) -> None:
    x, bias, gradient = inputs(shape, dtype, offset)
    y, argmax, dx, dbias, *pooled = in_every_order(lambda: run_both(x, bias, gradient, normalise))
    exact = forward_and_backward(x.double(), bias.double(), gradient.double(), normalise)
    plain = forward_and_backward(x, bias.to(dtype), gradient, normalise)
    assert_as_good(y, plain[0], exact[0])
    assert_as_good(dx, plain[1], exact[1])
    assert_as_good(dbias, plain[2].float(), exact[2])
    for tensor in (y, dx, *pooled):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    if normalise and x.numel():
        assert torch.equal(pooled[0], emulated.relu_pool(x, bias, False)[0])
    assert argmax.shape == (x.shape[0], *y.shape[2:], (x.shape[1] + 1) // 2)
    # Without what the backward pass needs, the same result.
    without = emulated.relu_pool_lrn(x, bias, False) if normalise else emulated.relu_pool(x, bias, False)
    assert torch.equal(without[0], y)
    assert all(extra.numel() == 0 for extra in without[1:])


def codes(argmax: Tensor, channels: int) -> Tensor:
    """(N, C, PH, PW), unpacked; above a last odd channel there is zero."""
    both = torch.stack([argmax & 15, argmax >> 4], -1).flatten(-2)
    assert not both[..., channels:].any()
    return both[..., :channels].movedim(-1, 1)


@pytest.mark.parametrize("channels", [8, 4, 3])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("normalise", [False, True])
def test_the_first_of_equals_wins_and_what_stops_is_marked(channels: int, dtype: torch.dtype, normalise: bool) -> None:
    """Few different values, zeros of both signs among them: most windows hold several equal maxima."""
    generator = torch.Generator().manual_seed(channels)
    values = torch.tensor([-2.0, -0.0, 0.0, 1.0])
    x = channels_last(values[torch.randint(0, 4, (2, channels, 12, 9), generator=generator)].to(dtype))
    bias = torch.arange(channels) / 2 - 1
    operator = emulated.relu_pool_lrn if normalise else emulated.relu_pool
    *_, argmax = operator(x, bias, True)
    best, index = F.max_pool2d(x.double(), 3, 2, ceil_mode=True, return_indices=True)
    row, column = index // 9, index % 9
    ph, pw = best.shape[2:]
    place = 3 * (row - 2 * torch.arange(ph)[:, None]) + (column - 2 * torch.arange(pw))
    expected = torch.where(best + bias.view(-1, 1, 1) > 0, place, 15)
    assert torch.equal(codes(argmax, channels).long(), expected)


@pytest.mark.parametrize("channels", [8, 5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_is_handed_on(channels: int, dtype: torch.dtype) -> None:
    x, bias, gradient = inputs((2, channels, 9, 9), dtype)
    x[1, 2, 4, 4] = float("nan")  # in four windows
    y, argmax, dx, _ = run_both(x, bias, gradient, False)
    assert y.isnan().sum() == 4
    assert y[1, 2, 1:3, 1:3].isnan().all()
    assert codes(argmax, channels)[1, 2, 1:3, 1:3].tolist() == [[8, 6], [2, 0]]
    torch.testing.assert_close(dx[1, 2, 4, 4].float(), gradient[1, 2, 1:3, 1:3].float().sum(), rtol=1e-2, atol=1e-2)

    y, _, dx, dbias, _ = run_both(x, bias, gradient, True)
    near = slice(0, 5)  # the channels that are normalised with it
    assert y[1, near, 1:3, 1:3].isnan().all()
    assert y.isnan().sum() == 4 * 5
    assert dx[1, 2].isnan().any()
    assert dbias[2].isnan()

    x, bias, gradient = inputs((1, channels, 9, 9), dtype)
    gradient[0, 3, 2, 2] = float("nan")
    bias[3] = 1000.0
    for normalise in (False, True):
        assert run_both(x, bias, gradient, normalise)[2][0, 3].isnan().any()
    bias[3] = -1000.0  # and what the ReLU stops is no gradient, whatever it is
    _, _, dx, dbias = run_both(x, bias, gradient, False)
    assert not dx.isnan().any()
    assert dbias[3] == 0


@pytest.mark.parametrize("channels", [8, 4, 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_by_the_edge_gets_its_gradient(channels: int, dtype: torch.dtype) -> None:
    """Three of its four windows reach over the edge, where no place may win; of two NaNs the first does."""
    x, bias, gradient = inputs((1, channels, 4, 4), dtype)
    x[0, 1, 2, 2] = float("nan")
    _, argmax, dx, _ = run_both(x, bias, gradient, False)
    assert codes(argmax, channels)[0, 1].tolist() == [[8, 6], [2, 0]]
    torch.testing.assert_close(dx[0, 1, 2, 2].float(), gradient[0, 1].float().sum(), rtol=1e-2, atol=1e-2)
    x[0, 1, 3, 3] = float("nan")
    assert codes(emulated.relu_pool(x, bias, True)[1], channels)[0, 1].tolist() == [[8, 6], [2, 0]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_numbers_are_normalised(dtype: torch.dtype) -> None:
    """The sum of squares overflows; the result is tiny, and no NaN."""
    x = channels_last(torch.full((1, 8, 3, 3), 1e30).to(dtype))
    y = emulated.relu_pool_lrn(x, torch.zeros(8), False)[0]
    assert not y.isnan().any()
    assert (y < 1e2).all()


@pytest.mark.parametrize("normalise", [False, True])
def test_an_image_does_not_depend_on_the_others(normalise: bool) -> None:
    x, bias, gradient = inputs((5, 16, 17, 12), torch.bfloat16)
    together = run_both(x, bias, gradient, normalise)
    for i in range(len(x)):
        alone = run_both(x[i : i + 1], bias, gradient[i : i + 1], normalise)
        for which in (0, 1, 2):
            assert torch.equal(bits(together[which][i : i + 1]), bits(alone[which]))


def test_pooling_refuses() -> None:
    x, bias, gradient = inputs((2, 8, 9, 9), torch.float32)
    _, pooled, argmax = emulated.relu_pool_lrn(x, bias, True)
    for bad_x, bad_bias, says in [
        (x.double(), bias, "x must be float32 or bfloat16 on a GPU, not Double"),
        (x[0], bias, "not 3-d"),
        (x.contiguous(), bias, "channels-last"),
        (channels_last(x[..., :2]), bias, "at least 3 x 3 pixels, not 9 x 2"),
        (x, bias[:7], "one float32 a channel"),
        (x, bias.double(), "one float32 a channel"),
    ]:
        for operator in (emulated.relu_pool, emulated.relu_pool_lrn):
            with pytest.raises(RuntimeError, match=says):
                operator(bad_x, bad_bias, True)
    back = (gradient, argmax, 9, 9)
    for i, bad, says in [
        (0, gradient.double(), "gradient must be float32 or bfloat16"),
        (0, gradient.contiguous(), "channels-last"),
        (1, argmax[:1], "what the forward pass kept"),
        (1, argmax.int(), "what the forward pass kept"),
        (2, 10, "10 x 9 pixels are not pooled to gradient's 4 x 4"),
        (3, 2, "at least 3 x 3"),
    ]:
        given = [*back[:i], bad, *back[i + 1 :]]
        with pytest.raises(RuntimeError, match=says):
            emulated.relu_pool_backward(*given)
        with pytest.raises(RuntimeError, match=says):
            emulated.relu_pool_lrn_backward(given[0], pooled, *given[1:])
    with pytest.raises(RuntimeError, match="pooled must have gradient's shape, type and device"):
        emulated.relu_pool_lrn_backward(gradient, pooled.bfloat16(), argmax, 9, 9)
