"""The random draws of a study, as functions.

A draw is Philox4x32-10 of (study seed, purpose, indices), never of the networks that train beside, the device, the
number of workers, or the point of an interruption. So a resumed run is exact, a network trained beside others equals
the same one trained alone, and networks of one target differ only in what is compared.

Philox: Salmon, Moraes, Dror, Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_CHUNK = 1 << 18  # blocks at a time: the temporaries of a round stay in the cache


def key(seed: int, purpose: str, *indices: int | str) -> int:
    """Return the 64-bit Philox key of a purpose, e.g. `key(0, "cell-order", "B")`.

    The key is a digest, so that neighbouring seeds and similar purposes have unrelated keys.
    """
    text = "\x1f".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def philox(key: int, blocks: int, *, first: int = 0, at: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Return blocks `first` to `first + blocks - 1` of the stream of `key` at `at` (an epoch or a step).

    The 128-bit counter is (block, `at`), each 64 bits, low words first.

    Returns:
        (blocks, 4) int64 holding unsigned 32-bit words.
    """
    out = torch.empty((blocks, 4), dtype=torch.int64, device=device)
    for start in range(0, blocks, _CHUNK):
        stop = min(start + _CHUNK, blocks)
        _philox_chunk(key, first + start, at, out[start:stop])
    return out


def _philox_chunk(key: int, first: int, at: int, out: Tensor) -> None:
    index = torch.arange(first, first + len(out), dtype=torch.int64, device=out.device)
    c0, c1 = index & _LOW, (index >> 32) & _LOW
    c2, c3 = torch.full_like(index, at & _LOW), torch.full_like(index, (at >> 32) & _LOW)
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    for _ in range(_ROUNDS):
        # A 32 x 32 bit product fills 64 bits; the sign of int64 does not matter once both halves are masked.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (((product1 >> 32) & _LOW) ^ c1 ^ k0, ((product0 >> 32) & _LOW) ^ c3 ^ k1)
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    torch.stack((c0, c1, c2, c3), dim=1, out=out)


def words(key: int, count: int, *, at: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Return the first `count` 32-bit words of a stream, (count,) int64."""
    return philox(key, -(-count // 4), at=at, device=device).view(-1)[:count]


def permutation(key: int, n: int, *, at: int = 0) -> Tensor:
    """Return a random order of 0..n-1, (n,) int64: indices sorted by 63-bit draws, ties by index."""
    draws = philox(key, -(-n // 2), at=at).view(-1, 2)[:n]
    return torch.argsort((draws[:, 0] << 31) ^ draws[:, 1], stable=True)


def normal(key: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal numbers of `shape`, float32, by Box and Muller from pairs of words.

    Computed in float64, so that the rounded result hardly ever depends on the last bit of a maths library.
    """
    count = math.prod(shape)
    out = torch.empty(-(-count // 4) * 4, dtype=torch.float32)
    for start in range(0, len(out), 4 * _CHUNK):
        part = out[start : start + 4 * _CHUNK]
        draws = philox(key, len(part) // 4, first=start // 4).view(-1, 2).to(torch.float64)
        radius = torch.sqrt(-2.0 * torch.log((draws[:, 0] + 1.0) * 2.0**-32))
        angle = draws[:, 1] * (2.0 * math.pi * 2.0**-32)
        part.copy_(torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1).view(-1))
    return out[:count].view(*shape)
