"""Times variants of the same work against each other, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

CACHES = 128 << 20  # bytes: inputs are rotated until they take more than this


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median, least and most of `rounds` samples, and the samples.

    Sample i of all variants was taken in the same round: their ratios, round by round, show less of what else the
    machine was doing than ratios of medians.
    """

    median: float
    least: float
    most: float
    rounds: int
    samples: tuple[float, ...] = ()


def compare(
    variants: Mapping[str, Callable[[int], object]],
    device: torch.device,
    *,
    rounds: int = 7,
    sample: float = 0.01,
    lead: int = 0,
) -> dict[str, Timing]:
    """Times every variant once a round, in turn.

    Args:
        variants: called with a running number, to choose among equal inputs so that none is found in a cache.
        rounds: samples of each; two calls before them warm up.
        sample: seconds a sample takes at least, by repeating the call.
        lead: calls before each sample, so that what was made ahead while others had their turn is not counted.
    """
    repeats = {}
    for name, call in variants.items():
        for i in range(1 + lead):
            call(i)  # compiles
        repeats[name] = max(1, round(sample / max(_time(call, 1, device), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            for i in range(lead):
                call(i)
            samples[name].append(_time(call, repeats[name], device))
    return {name: timing(taken) for name, taken in samples.items()}


def timing(samples: Sequence[float]) -> Timing:
    """What is kept of samples, in seconds."""
    return Timing(statistics.median(samples), min(samples), max(samples), len(samples), tuple(samples))


def _time(call: Callable[[int], object], repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        for i in range(repeats):
            call(i)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    begin = time.perf_counter()
    for i in range(repeats):
        call(i)
    return (time.perf_counter() - begin) / repeats


def copying(traffic: int, device: torch.device) -> Callable[[int], object]:
    """A plain copy that reads and writes `traffic` bytes together, past the caches: what memory allows at the most."""
    count = max(1, traffic // 2)
    places = max(1, -(-CACHES // count))
    source = torch.randint(0, 256, (places, count), dtype=torch.uint8, device=device)
    target = torch.empty_like(source).fill_(0)
    return lambda i: target[i % places].copy_(source[i % places])
