"""What this machine can do at the most, measured: what every other number is held against.

Copies of memory too large for any cache, products of large square matrices, the convolutions of the paper's network as
PyTorch does them, and the decoding of images, each on all the threads that PyTorch uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.bench import data
from fasttransfer.bench.timing import Timing, compare, copying
from fasttransfer.networks.geometry import CAFFENET, layer_of

COPIED = {"cpu": 512 << 20, "cuda": 4 << 30}  # bytes read and written by one call
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
BATCH = {"cpu": 64, "cuda": 256}  # images that are convolved
DECODED = "decoding, "

Call = Callable[[int], object]


@dataclass(frozen=True)
class Ceiling:
    """One thing that is timed; a call does `work` of `unit`: bytes, FLOP or images."""

    work: float
    unit: str
    call: Call


def ceilings(device: torch.device, blobs: Sequence[bytes], threads: int) -> dict[str, Ceiling]:
    """All of them by name; `blobs` are JPEGs."""
    copied = COPIED[device.type]
    found = {"copy": Ceiling(copied, "bytes", copying(copied, device))}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        side = SIDE[device.type]
        found[f"matrices, {name}"] = Ceiling(2 * side**3, "FLOP", _product(side, dtype, device))
        work, call = _convolutions(BATCH[device.type], dtype, device)
        found[f"convolutions, {name}"] = Ceiling(work, "FLOP", call)
    for name, call in data.decoders(blobs, threads, device).items():
        found[f"{DECODED}{name}"] = Ceiling(len(blobs), "images", call)
    return found


def measure(made: Mapping[str, Ceiling], device: torch.device, rounds: int, sample: float = 0.2) -> dict[str, Timing]:
    """Times every ceiling; `sample` is the least seconds of a sample."""
    return compare({name: ceiling.call for name, ceiling in made.items()}, device, rounds=rounds, sample=sample)


def _product(side: int, dtype: torch.dtype, device: torch.device) -> Call:
    sets = [torch.randn(2, side, side, device=device).to(dtype) for _ in range(4)]
    out = torch.empty(side, side, dtype=dtype, device=device)
    return lambda i: torch.mm(*sets[i % len(sets)], out=out)


def _convolutions(batch: int, dtype: torch.dtype, device: torch.device) -> tuple[int, Call]:
    """Stages 1 to 5 one after another, forward, channels-last, on inputs of their own: (FLOP a call, the call)."""
    layers: list[tuple[Tensor, Tensor, int, int, int]] = []
    for stage in range(1, 6):
        padding, groups = layer_of(stage).padding, layer_of(stage).groups
        stride = CAFFENET.stride if stage == 1 else 1
        x, w = (
            torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
            for shape in ((batch, *CAFFENET.cut_shape(stage - 1)), CAFFENET.weight_shapes(1)[stage - 1])
        )
        layers.append((x, w, stride, padding, groups))

    @torch.no_grad()
    def call(i: int) -> None:
        for x, w, stride, padding, groups in layers:
            F.conv2d(x, w, None, stride, padding, groups=groups)

    return 2 * batch * sum(CAFFENET.macs(1)[:5]), call
