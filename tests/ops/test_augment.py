"""The operator against images cut by hand, its reference, and PyTorch's own checks of an operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fasttransfer.ops._augment import augment, augment_reference

TYPES = [torch.float32, torch.bfloat16]


def draw(store: int, crop: int, images: int, *, shards: tuple[int, ...] = (7,), device: str = "cpu") -> list[Any]:
    """Random arguments up to and including `mirror`."""
    torch.manual_seed(0)
    pixels = [torch.randint(0, 256, (rows, store, store, 3), dtype=torch.uint8) for rows in shards]
    rows = torch.randint(sum(shards), (images,))
    mean = torch.rand(store, store, 3) * 255
    top, left = torch.randint(store - crop + 1, (2, images))
    mirror = torch.rand(images) < 0.5
    return [[p.to(device) for p in pixels], *(t.to(device) for t in (rows, mean, top, left, mirror))]


def by_hand(arguments: list[Any], crop: int, block: int, side: int, scale: float) -> Tensor:
    """One image after another; (N, 3 * block^2, side, side) float32."""
    shards, rows, mean, top, left, mirror = arguments
    store = torch.cat(shards)
    results = []
    for row, y, x, mirrored in zip(*(t.tolist() for t in (rows, top, left, mirror)), strict=True):
        image = (store[row].float() - mean)[y : y + crop, x : x + crop] * scale
        if mirrored:
            image = image.flip(1)
        whole = torch.zeros(max(crop, side * block), max(crop, side * block), 3, device=image.device)
        whole[:crop, :crop] = image
        blocks = torch.empty(block, block, 3, side, side, device=image.device)
        for dy in range(block):
            for dx in range(block):
                blocks[dy, dx] = whole[dy::block, dx::block][:side, :side].permute(2, 0, 1)
        results.append(blocks.flatten(0, 2))
    return torch.stack(results)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [1.0, 0.00390625, 0.3])
@pytest.mark.parametrize(
    ("store", "crop", "block", "side"),
    [
        (12, 7, 1, 7),
        (12, 12, 1, 12),  # nothing to choose
        (12, 1, 1, 1),
        (12, 7, 1, 3),  # less than there is
        (12, 7, 1, 9),  # and more
        (40, 27, 4, 7),  # the network's: 227 pixels are 57 blocks, the last of three
        (40, 27, 4, 6),
        (40, 27, 4, 9),
        (40, 28, 4, 7),
        (13, 8, 3, 3),
        (9, 5, 7, 2),  # a block wider than the crop
        (64, 57, 2, 29),
    ],
)
def test_is_what_is_cut_by_hand(
    device: str, dtype: torch.dtype, scale: float, store: int, crop: int, block: int, side: int
) -> None:
    arguments = draw(store, crop, 9, shards=(4, 3), device=device)
    assert {True, False} == set(arguments[-1].tolist())
    got = augment(*arguments, crop=crop, block=block, side=side, scale=scale, dtype=dtype)
    assert got.shape == (9, 3 * block * block, side, side)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    # Each value is a difference and a product, both rounded to float32 wherever they are computed.
    assert torch.equal(got, by_hand(arguments, crop, block, side, scale).to(dtype))


@settings(deadline=None, max_examples=60)
@given(
    crop=st.integers(1, 20),
    margin=st.integers(0, 5),
    block=st.integers(1, 5),
    side=st.none() | st.integers(1, 8),
    shards=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any),
    images=st.integers(0, 5),
    dtype=st.sampled_from(TYPES),
)
def test_equals_the_reference(
    crop: int, margin: int, block: int, side: int | None, shards: list[int], images: int, dtype: torch.dtype
) -> None:
    arguments = draw(crop + margin, crop, images, shards=tuple(shards))
    got = augment(*arguments, crop=crop, block=block, side=side, scale=0.7, dtype=dtype)
    whole = -(-crop // block)
    reference = augment_reference(*arguments, crop, block, whole if side is None else side, 0.7, dtype)
    assert torch.equal(got, reference)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert reference.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("device", DEVICES)
def test_every_row_of_every_shard_is_found(device: str) -> None:
    shards = [torch.full((rows, 2, 2, 3), 0, dtype=torch.uint8, device=device) for rows in (2, 0, 1, 3)]
    first = 0
    for shard in shards:
        shard += torch.arange(first, first + len(shard), dtype=torch.uint8, device=device).view(-1, 1, 1, 1)
        first += len(shard)
    rows = torch.tensor([5, 0, 2, 1, 3, 4, 2, 0], device=device)
    zero, no = torch.zeros_like(rows), torch.zeros(len(rows), dtype=torch.bool, device=device)
    got = augment(shards, rows, torch.zeros(2, 2, 3, device=device), zero, zero, no, crop=2, scale=1.0)
    assert got[:, 0, 0, 0].tolist() == rows.tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_nan_in_the_mean_is_seen(device: str, dtype: torch.dtype) -> None:
    arguments = draw(8, 8, 3, device=device)
    arguments[2][4, 5, 1] = float("nan")
    got = augment(*arguments, crop=8, block=1, scale=1.0, dtype=dtype)
    assert got.isnan().flatten(1).sum(1).tolist() == [1, 1, 1]


def test_bfloat16_rounds_to_nearest_even() -> None:
    pixels = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)
    # Half way between two values of 8 bits, both times to the even one, and just above it.
    mean = -torch.tensor([[[1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20]]])
    zero = torch.zeros(1, dtype=torch.int64)
    got = augment([pixels], zero, mean, zero, zero, zero.bool(), crop=1, scale=1.0, dtype=torch.bfloat16)
    assert got.flatten().tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]


def test_threads_and_the_rest_of_the_batch_change_nothing() -> None:
    arguments = draw(80, 67, 33)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(augment(*arguments, crop=67, block=4, scale=0.3))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    shards, rows, mean, *views = arguments
    for i in (0, 20, 32):
        alone = augment(shards, rows[i : i + 1], mean, *(v[i : i + 1] for v in views), crop=67, block=4, scale=0.3)
        assert torch.equal(alone[0], results[0][i])


def test_indices_need_not_stand_one_after_another() -> None:
    shards, rows, mean, top, left, mirror = draw(12, 7, 6)
    apart = torch.stack([rows, top, left], 1)
    got = augment(shards, apart[:, 0], mean, apart[:, 1], apart[:, 2], mirror, crop=7, scale=1.0)
    assert torch.equal(got, augment(shards, rows, mean, top, left, mirror, crop=7, scale=1.0))


@pytest.mark.parametrize(
    ("position", "value", "says"),
    [
        (1, 7, "row 7 is asked for, the shards hold 7 images"),
        (1, -1, "row -1 is asked for"),
        (3, 6, "top must lie in 0 to 5, not 6"),
        (3, -1, "top must lie in 0 to 5, not -1"),
        (4, 6, "left must lie in 0 to 5, not 6"),
        (4, -(2**62), "left must lie in 0 to 5"),
    ],
)
def test_nothing_outside_of_the_store_is_read(position: int, value: int, says: str) -> None:
    arguments = draw(12, 7, 6)
    arguments[position][5] = value
    with pytest.raises(RuntimeError, match=says):
        augment(*arguments, crop=7, scale=1.0)


@pytest.mark.parametrize(
    ("position", "argument", "says"),
    [
        (0, [torch.zeros(7, 12, 12, 3)], "shard 0 must be"),
        (0, [torch.zeros(7, 12, 12, 3, dtype=torch.uint8), torch.zeros(1, 11, 12, 3, dtype=torch.uint8)], "shard 1"),
        (0, [torch.zeros(7, 12, 24, 3, dtype=torch.uint8)[:, :, ::2]], "contiguous"),
        (0, [], "the shards hold 0 images"),
        (1, torch.zeros(6, dtype=torch.int32), "rows must be 6 int64"),
        (1, torch.zeros(6, 1, dtype=torch.int64), "rows must be 6 int64"),
        (2, torch.zeros(12, 12, 3, dtype=torch.float64), "mean must be"),
        (2, torch.zeros(11, 12, 3), "mean must be"),
        (3, torch.zeros(5, dtype=torch.int64), "top must be 6 int64"),
        (4, torch.zeros(6), "left must be 6 int64"),
        (5, torch.zeros(6, dtype=torch.uint8), "mirror must be 6 bool"),
    ],
)
def test_bad_tensors(position: int, argument: Any, says: str) -> None:
    arguments = draw(12, 7, 6)
    arguments[position] = argument
    with pytest.raises(RuntimeError, match=says):
        augment(*arguments, crop=7, scale=1.0)


def test_bad_numbers() -> None:
    arguments = draw(12, 7, 6)
    for crop in (0, 13):
        with pytest.raises(RuntimeError, match="crop must lie in 1 to 12"):
            augment(*arguments, crop=crop, side=1, scale=1.0)
    for block, side in ((0, 1), (1, 0), (-1, 3)):
        with pytest.raises(RuntimeError, match="block and side must be at least 1"):
            augment(*arguments, crop=7, block=block, side=side, scale=1.0)
    with pytest.raises(RuntimeError, match="dtype must be float32 or bfloat16"):
        augment(*arguments, crop=7, scale=1.0, dtype=torch.float16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
def test_opcheck(device: str, dtype: torch.dtype) -> None:
    arguments = draw(12, 7, 6, shards=(3, 4), device=device)
    torch.library.opcheck(torch.ops.fasttransfer.augment.default, (*arguments, 7, 4, 2, 0.5, dtype))


@pytest.mark.compiled
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break(device: str) -> None:
    def doubled(*arguments: Any) -> Tensor:
        return augment(*arguments, crop=7, block=4, scale=0.5) * 2

    arguments = draw(12, 7, 6, shards=(3, 4), device=device)
    assert torch.equal(torch.compile(doubled, fullgraph=True)(*arguments), doubled(*arguments))
