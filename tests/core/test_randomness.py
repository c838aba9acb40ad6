"""Draws are functions, and the functions they are said to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttransfer.core import randomness

# Known answers of Philox4x32-10 published with Random123: counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    block, at = counter[0] | counter[1] << 32, counter[2] | counter[3] << 32
    signed = block - 2**64 if block >= 2**63 else block  # block numbers are int64; the bits are what counts
    found = randomness.philox(key[0] | key[1] << 32, 1, first=signed, at=at)
    assert tuple(found[0].tolist()) == words


def test_a_stream_is_the_same_wherever_it_is_entered() -> None:
    key = randomness.key(3, "purpose", "B")
    # More than one chunk, so that the seam between chunks is inside.
    count = randomness._CHUNK + 5
    whole = randomness.philox(key, count, at=9)
    assert torch.equal(whole[-7:], randomness.philox(key, 7, first=count - 7, at=9))
    assert not torch.equal(whole[:7], randomness.philox(key, 7, at=10))


def test_keys_differ_in_every_index() -> None:
    keys = {
        randomness.key(seed, purpose, *rest)
        for seed in (0, 1)
        for purpose in ("base-order", "cell-order")
        for rest in ((), ("A",), ("B",), ("A", 1), ("A", 11), (1, "A"))
    }
    assert len(keys) == 24


def test_indices_are_not_run_together() -> None:
    assert randomness.key(0, "x", 1, 11) != randomness.key(0, "x", 11, 1)
    assert randomness.key(1, "1x") != randomness.key(11, "x")


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 2000), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_a_permutation_holds_every_index_once(n: int, seed: int, epoch: int) -> None:
    order = randomness.permutation(randomness.key(seed, "order"), n, at=epoch)
    assert sorted(order.tolist()) == list(range(n))


def test_orders_of_two_epochs_share_no_more_places_than_chance() -> None:
    key = randomness.key(0, "order")
    same = randomness.permutation(key, 10_000, at=0) == randomness.permutation(key, 10_000, at=1)
    assert same.sum() < 10  # one is expected


def test_normal_numbers_have_the_moments_and_tails_of_a_normal() -> None:
    x = randomness.normal(randomness.key(0, "weights"), (1_000_003,)).double().numpy()
    assert abs(x.mean()) < 0.005
    assert abs(x.std() - 1) < 0.005
    assert abs((x**3).mean()) < 0.02
    assert abs((x**4).mean() - 3) < 0.05
    assert 4.4 < np.abs(x).max() < 6.0
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.005


def test_normal_numbers_do_not_depend_on_their_count() -> None:
    key = randomness.key(0, "weights")
    assert torch.equal(randomness.normal(key, (7, 3)).view(-1), randomness.normal(key, (50,))[:21])
