"""What training cells together gives and takes, at both geometries: time, memory, and the first convolutions as one.

    python bench/cohorts.py
    python bench/cohorts.py --quick     # the small network only, three samples

* seven frozen cells of one source in one cohort, against seven cohorts of one cell each, a step at a time in turn;
* seven fine-tuned cells' first convolutions as one with seven times the channels, against one after another;
* a cohort's memory at the most, against its cells' weights and momenta, one cell's activations and 1 GiB.

Cohorts are the project's own, fed from random pixels in memory through its own feed. Writes bench/results/cohorts.json.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import math
import multiprocessing as mp
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.bench.memory import held, watched
from fasttransfer.bench.timing import compare
from fasttransfer.bench.training import RECIPES
from fasttransfer.core import devices, machine, randomness
from fasttransfer.core.files import make_folder, replace_file
from fasttransfer.networks import inputs
from fasttransfer.networks.caffenet import CaffeNet, StepDropout, draw_weights
from fasttransfer.networks.geometry import DROPOUT_STAGES, GEOMETRIES, Geometry
from fasttransfer.pipelines.memory_feed import MemoryFeed
from fasttransfer.pipelines.store import RawStorePart
from fasttransfer.pipelines.streams import TaskImages
from fasttransfer.study import environment
from fasttransfer.study.cells import LAYERS, TASKS, TREATMENTS, Cell
from fasttransfer.study.configuration import Study
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training import cost
from fasttransfer.training.cohort import Cohort, CohortTask
from fasttransfer.training.draws import image_stream
from fasttransfer.training.transfer import source_weights

CPU = torch.device("cpu")
OUTPUTS = {"caffenet": 500, "caffenet-mini": 16}  # the paper's halves, the built-in images' tasks
IMAGES = 256
PRECISIONS = ("bf16", "fp32")
SEVEN = [Cell(0, "B", "transfer", n) for n in LAYERS]
# What memory is measured of: all copies of a target, and of the paper's network as many as fit a small machine.
MANY = {
    "caffenet-mini": [Cell(0, "B", treatment, n) for treatment in TREATMENTS for n in LAYERS],
    "caffenet": [Cell(0, "B", t, n) for t, n in (("transfer", 3), ("transfer+", 3), ("selffer", 5), ("random", 7))],
}

Found = dict[str, Any]


def threads_of(geometry: Geometry) -> int:
    """A study's for the small network, whose products are too small for two; all cores for the paper's."""
    return devices.choose_threads("cpu") if geometry.name == "caffenet-mini" else machine.cores()


def study_of(geometry: Geometry, precision: str, batch: int) -> Study:
    """A study without an end and without validation, on no images in particular."""
    recipe = dataclasses.replace(
        load_recipe(RECIPES[geometry.name]), batch=batch, steps=1 << 40, epochs=None, checks=1, init="he", lr=1e-6
    )
    return Study(
        data="random pixels", images="", split="", tasks="", layers=LAYERS, treatments=TREATMENTS, targets=TASKS,
        seeds=(0,), bad_images="fail", precision=precision, device="cpu", threads=threads_of(geometry), recipe=recipe,
    )  # fmt: skip


def pixels_for(geometry: Geometry) -> TaskImages:
    """Random images with labels of a task, in memory."""
    random, side = np.random.default_rng(0), geometry.store
    labels = np.arange(IMAGES, dtype=np.int64) % OUTPUTS[geometry.name]
    pixels = random.integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)
    part = RawStorePart(labels, (pixels,), np.zeros(1, dtype=np.int64), side)
    return TaskImages(part, np.arange(IMAGES), labels)


def sources_for(geometry: Geometry) -> dict[str, dict[str, Tensor]]:
    """Bases that nobody trained."""

    def draw(task: str) -> dict[str, Tensor]:
        key = randomness.key
        return draw_weights(geometry, OUTPUTS[geometry.name], "he", lambda stage: key(0, "bench-base", task, stage))

    return {task: draw(task) for task in TASKS}


def cohort_of(
    study: Study, cells: Sequence[Cell], images: TaskImages, sources: dict[str, dict[str, Tensor]], folder: Path
) -> Cohort:
    """The cohort of `cells` on `images`."""
    geometry = study.recipe.geometry
    grey = torch.full((geometry.store, geometry.store, 3), 128.0)
    feed = MemoryFeed(
        images,
        images,
        image_stream(study, cells[0], len(images)),
        {task: grey for task in sorted({cell.mean_of for cell in cells})},
        device=CPU,
        crop=geometry.crop,
        scale=study.recipe.scale,
        **inputs.choose_input_form(geometry, "cpu", study.precision),
    )
    outputs = OUTPUTS[geometry.name]
    target = CohortTask("B", outputs, outputs, len(images), len(images), feed)
    copied = source_weights(study, cells, outputs, lambda base: sources[base.target])
    return Cohort(study, cells, target, copied, folder, CPU)


class Stepped:
    """A cohort that trains a step a call: it runs in a thread of its own, held wherever it may be stopped."""

    def __init__(self, cohort: Cohort) -> None:
        self._cohort, self._go, self._done = cohort, threading.Semaphore(0), threading.Semaphore(0)
        self._wanted = True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._done.acquire()

    def __call__(self) -> None:
        """One step."""
        self._go.release()
        self._done.acquire()
        if not self._thread.is_alive():
            raise RuntimeError("the cohort ended: see above")

    def end(self) -> None:
        """Leaves the cohort where it is; nothing is written."""
        self._wanted = False
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._cohort.run(lambda message: None, self._hold, math.inf)
        except _EndedError:
            pass
        finally:
            self._wanted = False
            self._done.release()

    def _hold(self) -> bool:
        self._done.release()
        self._go.acquire()
        if not self._wanted:
            raise _EndedError
        return False


class _EndedError(Exception):
    """Nobody wants another step."""


def share_freed_memory() -> None:
    """One cohort's freed memory is the next one's: glibc else keeps it apart for each of the threads they run in."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX


def measure_seven(geometry: Geometry, precision: str, batch: int, rounds: int, folder: Path) -> Found:
    """Seconds a step of seven frozen cells of one source, together and one after another."""
    torch.set_num_threads(threads_of(geometry))
    study, images, sources = study_of(geometry, precision, batch), pixels_for(geometry), sources_for(geometry)
    together = Stepped(cohort_of(study, SEVEN, images, sources, folder))
    alone = [Stepped(cohort_of(study, [cell], images, sources, folder)) for cell in SEVEN]

    def one_after_another(i: int) -> None:
        for stepped in alone:
            stepped()

    calls: dict[str, Callable[[int], object]] = {
        "one cohort": lambda i: together(),
        "seven cohorts": one_after_another,
    }
    timings = compare(calls, CPU, rounds=rounds, sample=0.2)
    for stepped in (together, *alone):
        stepped.end()
    sizes = geometry, OUTPUTS[geometry.name]
    macs = {"one cohort": cost.cohort_macs(*sizes, SEVEN)}
    macs["seven cohorts"] = sum(cost.cohort_macs(*sizes, [cell]) for cell in SEVEN)
    seconds = {name: asdict(timing) for name, timing in timings.items()}
    return {
        "batch": batch,
        "threads": threads_of(geometry),
        "multiply_adds_per_image": macs,
        "seconds": seconds,
        "gain": round(timings["seven cohorts"].median / timings["one cohort"].median, 3),
        "arithmetic_allows": round(macs["seven cohorts"] / macs["one cohort"], 3),
    }


def measure_first_convolutions(geometry: Geometry, precision: str, batch: int, rounds: int) -> Found:
    """Seconds of seven first convolutions on the same images, forward and the gradient of their weights.

    "in one" has their outputs and the gradients of those in one tensor, as no cell can use them; "in one, dealt out"
    copies each cell's part out of the one and into the other, as it would have to.
    """
    torch.set_num_threads(threads_of(geometry))
    dtype, count = inputs.dtype_of(precision), len(LAYERS)
    layout, channels, side = torch.channels_last, geometry.channels[0], geometry.sides[0]

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype).contiguous(memory_format=layout)

    x = made(batch, *geometry.cut_shape(0))
    weights = [made(*geometry.weight_shapes(1)[0]).requires_grad_() for _ in range(count)]
    gradients = [made(batch, channels, side, side) for _ in range(count)]
    stacked = torch.cat([w.detach() for w in weights]).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.cat(gradients, 1).contiguous(memory_format=layout)

    def apart(i: int) -> None:
        for w, g in zip(weights, gradients, strict=True):
            torch.autograd.grad(F.conv2d(x, w, stride=geometry.stride), w, g)

    def in_one(i: int) -> None:
        torch.autograd.grad(F.conv2d(x, stacked, stride=geometry.stride), stacked, gradient)

    def dealt_out(i: int) -> None:
        y = F.conv2d(x, stacked, stride=geometry.stride)
        for part in y.detach().split(channels, 1):
            part.contiguous(memory_format=layout)
        torch.autograd.grad(y, stacked, torch.cat(gradients, 1).contiguous(memory_format=layout))

    timings = compare(
        {"apart": apart, "in one": in_one, "in one, dealt out": dealt_out}, CPU, rounds=rounds, sample=0.2
    )
    seconds = {name: asdict(timing) for name, timing in timings.items()}
    gain = {name: round(timings["apart"].median / t.median, 3) for name, t in timings.items() if name != "apart"}
    return {"batch": batch, "threads": threads_of(geometry), "seconds": seconds, "gain": gain}


def measure_memory(geometry: Geometry, precision: str, batch: int) -> Found:
    """Bytes that a cohort takes at the most above what was there before, and what they are held against."""
    with mp.get_context("spawn").Pool(1) as process:
        return process.apply(memory_of, (geometry.name, precision, batch))


def memory_of(name: str, precision: str, batch: int) -> Found:
    """See `measure_memory`; in a process that has done nothing else."""
    geometry, cells = GEOMETRIES[name], MANY[name]
    torch.set_num_threads(threads_of(geometry))
    devices.keep_freed_memory()
    study, images = study_of(geometry, precision, batch), pixels_for(geometry)
    before = held()
    with tempfile.TemporaryDirectory() as folder, watched() as most:
        stepped = Stepped(cohort_of(study, cells, images, sources_for(geometry), Path(folder)))
        for _ in range(3):
            stepped()
        stepped.end()
    shapes = geometry.weight_shapes(OUTPUTS[name])
    counts = [math.prod(shape) + shape[0] for shape in shapes]
    weights = sum(2 * 4 * sum(counts[cell.first_trained :]) for cell in cells)
    kept = activations(geometry, precision, batch)
    return {
        "cells": len(cells),
        "batch": batch,
        "bytes": {"at the most": most[0] - before, "weights and momenta": weights, "activations of a cell": kept},
        "share_of_allowed": round((most[0] - before) / (weights + kept + 2**30), 4),
    }


def activations(geometry: Geometry, precision: str, batch: int) -> int:
    """Bytes that the forward pass of one network keeps for its gradients, weights left out."""
    net = CaffeNet(geometry, OUTPUTS[geometry.name], inputs.dtype_of(precision))
    own = {w.untyped_storage().data_ptr() for w in net.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    x = torch.randn(batch, *geometry.cut_shape(0)).to(inputs.dtype_of(precision), memory_format=torch.channels_last)
    drop = StepDropout({stage: stage for stage in DROPOUT_STAGES}, torch.zeros((), dtype=torch.int64), 0.5)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = net(x, drop=drop)
        F.cross_entropy(logits.float(), torch.zeros(batch, dtype=torch.int64))
    return sum(size for place, size in kept.items() if place not in own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small network only, three samples")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cohorts.json")
    chosen = parser.parse_args()
    devices.keep_freed_memory()
    share_freed_memory()
    rounds = 3 if chosen.quick else 7
    geometries = [g for g in reversed(GEOMETRIES.values()) if not (chosen.quick and g.name == "caffenet")]
    result: Found = {
        "command": "python bench/cohorts.py" + " --quick" * chosen.quick,
        "machine": environment.describe_machine(),
        "frozen cells": {},
        "first convolutions": {},
        "memory": {},
    }

    def found(part: str, case: str, facts: Found, told: object) -> None:
        result[part][case] = facts
        print(f"{part}, {case}: {told}", flush=True)
        make_folder(chosen.out.parent)
        with replace_file(chosen.out) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())

    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder) / "checkpoints")
        for geometry in geometries:
            batch = 32 if geometry.name == "caffenet-mini" else 64
            for precision in PRECISIONS:
                case = f"{geometry.name} {precision}"
                seven = measure_seven(geometry, precision, batch, rounds, Path(folder))
                found("frozen cells", case, seven, f"{seven['gain']}x of {seven['arithmetic_allows']}x")
                convolutions = measure_first_convolutions(geometry, precision, batch, rounds)
                found("first convolutions", case, convolutions, convolutions["gain"])
                memory = measure_memory(geometry, precision, batch)
                found("memory", case, memory, f"{memory['share_of_allowed']:.0%} of what is allowed")


if __name__ == "__main__":
    main()
