"""The memory of a worker that trains a cohort, against what waves are planned with and what it may take.

    python -m bench.footprint            # about ten minutes
    python -m bench.footprint --quick    # the small network alone

Each cohort is built, trained for two steps and stopped into checkpoints, in a process of its own; the most that it has
held as the system says (Linux, VmHWM) is written to bench/results/footprint.json, beside `planned`, what
`memory_use` says, and `bound`: the weights and velocities of all its cells (in bf16 the rounded weights
too), one cell's activations and gradients, and 1 GiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.studies import write_result
from fasttransfer.core import devices, tensor_files
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI
from fasttransfer.networks.precision import dtype_of
from fasttransfer.pipelines.memory_feed import MemoryFeed
from fasttransfer.pipelines.store import RawStorePart
from fasttransfer.pipelines.streams import TaskImages
from fasttransfer.study.cells import TREATMENTS, Cell, base
from fasttransfer.study.configuration import Study
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training import memory_use
from fasttransfer.training.cohort import Cohort, CohortTask
from fasttransfer.training.draws import image_stream, start_weights
from fasttransfer.training.transfer import source_weights

NETWORKS = {network.name: network for network in (CAFFENET, CAFFENET_MINI)}
RECIPES = {"caffenet": "fast", "caffenet-mini": "mini"}
OUTPUTS = {"caffenet": 500, "caffenet-mini": 16}
_ROWS = 4  # different images: a store's are in the page cache, which no process is charged for

# Geometry, precision, images per batch, cells.
SMALL = [
    ("caffenet-mini", "fp32", 32, "baseB"),
    ("caffenet-mini", "fp32", 32, "all"),
    ("caffenet-mini", "bf16", 32, "all"),
    ("caffenet-mini", "fp32", 256, "all"),
]
COHORTS = [
    *SMALL,
    ("caffenet", "bf16", 64, "baseB"),
    ("caffenet", "fp32", 64, "baseB"),
    ("caffenet", "bf16", 128, "baseB"),
    ("caffenet", "fp32", 128, "baseB"),
    ("caffenet", "bf16", 64, "A7B"),
    ("caffenet", "fp32", 64, "A7B"),
    ("caffenet", "bf16", 64, "A5B+"),
    ("caffenet", "fp32", 64, "A7B A7B+"),
    ("caffenet", "bf16", 64, "A1B A3B A5B B3B"),
    ("caffenet", "fp32", 64, "A1B A2B A3B A4B A5B A6B A7B"),
    ("caffenet", "bf16", 32, "A2B B2B R2B A7B B7B R7B A4B+ B7B+"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small network alone, and no JSON")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        geometry, precision, batch, names = chosen.child
        print(json.dumps(train(geometry, precision, int(batch), names)))
        return
    cohorts: list[dict[str, Any]] = []
    for geometry, precision, batch, names in SMALL if chosen.quick else COHORTS:
        command = [sys.executable, "-m", "bench.footprint", "--child", geometry, precision, str(batch), names]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        found = {"geometry": geometry, "precision": precision, "batch": batch, "cells": names} | found
        cohorts.append(found | {"planned / taken": round(found["planned"] / found["taken"], 3)})
        print(json.dumps(cohorts[-1]), flush=True)
    if not chosen.quick:
        write_result("footprint", "python -m bench.footprint", cohorts=cohorts)


def train(geometry: str, precision: str, batch: int, names: str) -> dict[str, int]:
    """Train a cohort in this process; return the bytes that it took, was planned with, and may take."""
    recipe = replace(load_recipe(RECIPES[geometry]), batch=batch, steps=3, epochs=None, checks=1)
    cells, outputs, network = _cells(names), OUTPUTS[geometry], NETWORKS[geometry]
    study = Study("", "", "", "", (1,), (), ("B",), (0,), "fail", precision, "cpu", 1, recipe)
    torch.set_num_threads(1)
    devices.keep_freed_memory()
    count, side = 2 * batch, network.store
    shard = np.random.default_rng(0).integers(0, 255, (_ROWS, side, side, 3), dtype=np.uint8)
    part = RawStorePart(np.zeros(_ROWS, np.int64), (shard,), np.zeros(1, np.int64), side)
    images = TaskImages(part, np.arange(count) % _ROWS, np.arange(count) % outputs)
    feed = MemoryFeed(
        images,
        images,
        image_stream(study, cells[0], count),
        {cell.mean_of: torch.zeros(side, side, 3) for cell in cells},
        crop=network.crop,
        scale=recipe.pixel_scale,
        device=torch.device("cpu"),
        **network.input_form("cpu", dtype_of(precision)),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "checkpoints").mkdir()
        for task in {c.needs.target for c in cells if c.needs is not None}:
            # In another process, so that the memory of drawing them does not count.
            code = "import sys; from bench import footprint; footprint.draw(*sys.argv[1:])"
            subprocess.run([sys.executable, "-c", code, geometry, str(folder / f"{task}")], check=True)
        read = lambda base: tensor_files.load(folder / base.target)[0]  # noqa: E731
        sources = source_weights(study, cells, outputs, read, dict)
        cohort = Cohort(
            study, cells, CohortTask("B", outputs, outputs, count, count, feed), sources, folder, torch.device("cpu")
        )
        del sources
        steps = iter(range(10))
        cohort.run(lambda message: None, lambda: next(steps) == 2)  # stopped into checkpoints
    parameters = network.weight_count(outputs)
    weighs = 6 if precision == "bf16" else 4
    live = [network.weight_count(outputs, cell.first_trained) for cell in cells]
    one = max(network.step_bytes(outputs, batch, precision, cell.first_trained) for cell in cells)
    cohort_bytes = memory_use.cohort_bytes(network, outputs, batch, precision, cells)
    return {
        "taken": _most(),
        "planned": memory_use.OWN + memory_use.SHARED + cohort_bytes,
        "bound": sum(4 * n + weighs * parameters for n in live) + one + (1 << 30),
    }


def draw(geometry: str, path: str) -> None:
    """Write a network's initial weights."""
    recipe = load_recipe(RECIPES[geometry])
    study = Study("", "", "", "", (1,), (), ("B",), (0,), "fail", "fp32", "cpu", 1, recipe)
    tensor_files.save(Path(path), start_weights(study, "base", 0, "B", OUTPUTS[geometry], "he"), {})


def _cells(names: str) -> Sequence[Cell]:
    """Return cells on task B by their names in the paper, or all copies."""
    every = [base("B", 0), *(Cell(0, "B", treatment, n) for treatment in TREATMENTS for n in CAFFENET.cuts)]
    if names == "all":
        return every[1:]
    return [cell for cell in every if cell.name in names.split()]


def _most() -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
