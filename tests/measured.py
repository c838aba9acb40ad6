"""A result of `fasttransfer bench all` that nobody measured, for tests of what is made of one."""

from __future__ import annotations

from typing import Any

from fasttransfer.bench import ablation, cells, roofline, targets
from fasttransfer.networks.geometry import CAFFENET
from fasttransfer.study.cells import base
from fasttransfer.study.paper import IMAGES_PER_SECOND

MACHINE = {
    "fasttransfer": "0.1.0", "python": "3.11", "system": "Linux", "processor": "A processor", "instructions": "avx2",
    "cores": "2", "memory": "8 GiB", "torch": "2.15.0", "cuda": "no device", "threads": "2",
}  # fmt: skip


def timing(median: float, spread: float = 0.02, rounds: int = 5) -> dict[str, Any]:
    """Samples evenly around `median`."""
    steps = [median * (1 + spread * (2 * i / (rounds - 1) - 1)) for i in range(rounds)]
    return {"median": median, "least": steps[0], "most": steps[-1], "rounds": rounds, "samples": steps}


def seconds(**medians: float) -> dict[str, Any]:
    """Timings by name; _ stands for a space."""
    return {name.replace("_", " "): timing(median) for name, median in medians.items()}


def result(device: str = "cpu") -> dict[str, Any]:
    """All parts, a step of 128 images in a second."""
    step = {"fasttransfer bf16": timing(1.0), "eager fp32": timing(2.6), "eager bf16 channels-last": timing(1.4)}
    step |= {"compiled bf16 channels-last": timing(1.5), "compiled bf16": timing(1.6), targets.ALONE: timing(0.9)}
    work = {"flops": roofline.trained(CAFFENET, 500, base("A", 0), 128, 2).flops, "bytes": 3 * 10**9}
    profile = [{"operator": "aten::mkldnn_convolution", "ms": 900.0, "calls": 5}]
    profile += [{"operator": "fasttransfer::sgd_step", "ms": 100.0, "calls": 2}]
    feed = {"fasttransfer raw": 16_000.0, "DataLoader + Pillow": 1_000.0, "copy": 32_000.0}
    taken = {name: timing(64 / rate) for name, rate in feed.items()}
    fed = {
        "images a call": 64,
        "images per second": feed,
        "against": {"what": "DataLoader + Pillow", **{name: rate / 1_000 for name, rate in feed.items()}},
        "of_copy": 0.5,
        "seconds": taken,
    }
    rates = {"train": {n: 128 / rate for n, rate in enumerate(IMAGES_PER_SECOND)}}
    cell_seconds = {cells.TRAIN.format(n): timing(taken) for n, taken in rates["train"].items()}
    cell_seconds |= {cells.FORWARD.format(n): timing(0.02 * n) for n in range(1, 9)}
    parts: dict[str, Any] = {
        "ceilings": {
            "a second": {"copy": 40 * 10**9, "convolutions, bf16": 400 * 10**9, "convolutions, fp32": 200 * 10**9},
            "unit": {"copy": "bytes", "convolutions, bf16": "FLOP", "convolutions, fp32": "FLOP"},
            "seconds": {name: timing(0.1) for name in ("copy", "convolutions, bf16", "convolutions, fp32")},
        },
        "kernels": {
            "cases": {
                targets.POOLING: {
                    "least_bytes": 10**8,
                    "of_copy": 0.4,
                    "seconds": seconds(native=0.01, eager=0.15, compiled=0.14, copy=0.004),
                }
            }
        },
        "step": {"caffenet": {"batch": 128, "work": {"bf16": work, "fp32": work}, "seconds": step, "profile": profile}},
        "cells": {
            "batch": 128,
            "outputs": 500,
            "work": {name: {"flops": 10**11, "bytes": 10**9} for name in cell_seconds},
            "seconds": cell_seconds,
        },
        "data": {
            "images": {"source": "built-in", "images": 400, "bytes": 40_000, "pixels": 160_000},
            "feed": {"1 core": fed, "2 cores": fed},
        },
        "features": {
            "not_zero": 0.54,
            "of_dense": 0.6,
            "dense_bytes": 10**6,
            "pack": {"of_copy": 0.5, "seconds": seconds(packed=0.001, copy=0.0005)},
            "unpack": {"of_copy": 1.5, "seconds": seconds(packed=0.0001, copy=0.00015)},
        },
        "ablation": {
            group: {
                "batch": 64,
                "seconds": {ablation.WHOLE: timing(1.0)}
                | {idea.name: timing(1.3) for idea in ideas if device == "cuda" or not idea.gpu_only},
            }
            for group, ideas in ablation.IDEAS.items()
        },
    }
    for name, part in parts.items():
        part |= {"command": f"fasttransfer bench {name}", "took": 1.0}
    head = {"command": "fasttransfer bench all", "when": "2026-01-02", "machine": MACHINE, "device": device}
    return head | {"price": None, "parts": parts}
