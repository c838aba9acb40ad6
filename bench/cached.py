"""A frozen cell from the feature cache against the same cell live, at the paper's geometry; and what filling takes.

    python bench/cached.py
    python bench/cached.py --quick

Pictures a second of one training step of the transfer cell AnB, batch 256 and 1000 outputs, with the machine's own
precision and threads. The source has He's initial values: how fast it is does not depend on what it has learned, but
how many of its features are not zero does (bench/features.py has trained ones). Filling is timed against the forward
pass to cut 6 that it cannot do without, both from the stored pictures. Writes bench/results/cached.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from fasttransfer import cohort, grid, info, machine, weights
from fasttransfer.assembly import Setting, build_cohort
from fasttransfer.bench.timing import compare
from fasttransfer.cells import LAYERS, Cell, base
from fasttransfer.cohort import Cohort, weights_path
from fasttransfer.features import cache
from fasttransfer.features.prefix import rounded_cuts
from fasttransfer.files import cache_folder, make_folder
from fasttransfer.net import CaffeNet
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.study import Choices

CPU = torch.device("cpu")
CLASSES, QUICK_CLASSES = 1000, 60
BATCH, QUICK_BATCH = 256, 16
RESULT = Path(__file__).parent / "results" / "cached.json"


def draw(folder: Path, classes: int) -> Path:
    """An ImageFolder of a picture a class and part: coloured noise at all scales."""
    random = np.random.default_rng(0)
    for number in range(classes):
        for part in ("train", "val"):
            pixels = np.zeros((256, 256, 3))
            for side in (4, 16, 64, 256):
                coarse = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
                pixels += np.asarray(coarse.resize((256, 256), Image.Resampling.BILINEAR)) / 4
            path = folder / part / f"{number:04}" / "0.jpg"
            make_folder(path.parent)
            Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)
    return folder


def open_study(folder: Path, batch: int, classes: int) -> Setting:
    """A study whose base of task A has He's values, and its pictures, prepared."""
    choices = Choices(
        split="random:0",
        data=str(draw(folder / "pictures", classes)),
        recipe="caffe",
        batch=batch,
        views=2,
        device="cpu",
    )
    plan = grid.settle(choices)
    store = prepare(Path(choices.data), size=plan.recipe.geometry.store, cache=cache_folder(), say=print)
    for name in ("weights", "checkpoints", "means"):
        make_folder(folder / name)
    setting = Setting(grid._study(plan, store.digest, None), folder, store.folder, plan.classes)
    grid._means(setting, store)
    values = {}
    for name, weight in CaffeNet(plan.recipe.geometry, classes).named_weights().items():
        values[name] = torch.randn(weight.shape) * (2 / weight[0].numel()) ** 0.5 * (weight.dim() > 1)
    values["conv1.weight"] /= 64  # of pixel differences, which the recipe leaves as they are
    weights.save(weights_path(folder, base("A", 0)), values, {})
    torch.set_num_threads(setting.study.threads)
    return setting


def cohort_of(setting: Setting, n: int, features: Any) -> Cohort:
    """The transfer cell frozen up to n."""
    return build_cohort(replace(setting, features=features), [Cell(0, "B", "transfer", n)], CPU)


def step_of(made: Cohort) -> Any:
    """One training step after another."""
    steps = iter(range(1 << 30))
    return lambda _: made._train_step(next(steps), made._members)


def filling(setting: Setting, batch: int) -> dict[str, Any]:
    """Seconds to fill all cuts, and of the forward passes over as many pictures."""
    cells = [Cell(0, "B", "transfer", n) for n in LAYERS]
    live = build_cohort(replace(setting, features="live"), cells, CPU)
    net, feed = live._sources["A"].net, live._target.feed
    records = 2 * live._target.train_pictures + live._target.val_pictures

    def forward(step: int) -> None:
        rounded_cuts(net, feed.train(step).pictures["A"], [6], batch)

    forward(0)  # what the libraries set up at first
    passes = -(-records // batch)
    start = time.perf_counter()
    for step in range(passes):
        forward(step)
    computed = (time.perf_counter() - start) / (passes * batch) * records
    built = []
    for _ in range(2):  # the second one finds all there
        start = time.perf_counter()
        build_cohort(replace(setting, features="cache"), cells, CPU)._target.feed.close()
        built.append(time.perf_counter() - start)
    filled = built[0] - built[1]
    entries = [entry for entry in cache.entries(cache.root()) if entry.about.part == "train"]
    return {
        "records": records,
        "fill_seconds": round(filled, 2),
        "forward_seconds": round(computed, 2),
        "ratio": round(filled / computed, 3),
        "cuts": {
            e.key.cut: {
                "packed": e.packed,
                "of_dense": round(e.bytes / e.dense, 4),
                "bytes": e.bytes // (e.pictures * e.views),
            }
            for e in sorted(entries, key=lambda e: e.key.cut)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures, n = 5 and 7; writes nothing")
    quick = parser.parse_args().quick
    batch, classes, rounds, layers = (QUICK_BATCH, QUICK_CLASSES, 2, (5, 7)) if quick else (BATCH, CLASSES, 5, LAYERS)
    cohort.start_weights = functools.cache(cohort.start_weights)  # drawn once, not for each of the cells
    machine.keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FASTTRANSFER_CACHE"] = f"{scratch}/cache"
        setting = open_study(Path(scratch) / "run", batch, classes)
        study = setting.study
        result: dict[str, Any] = {
            "command": "python bench/cached.py",
            "machine": info.measured_on(),
            "study": {"precision": study.precision, "threads": study.threads, "batch": batch, "outputs": classes},
            "filling": filling(setting, batch),
            "n": {},
        }
        Console().print_json(data=result["filling"])
        print("n   live, cached: pictures a second")
        for n in layers:
            cohorts = {name: cohort_of(setting, n, name) for name in ("live", "cache")}
            timed = compare({name: step_of(made) for name, made in cohorts.items()}, CPU, rounds=rounds)
            live, cached = (batch / timed[name].median for name in ("live", "cache"))
            for made in cohorts.values():
                made._target.feed.close()
            result["n"][n] = {"live": round(live, 1), "cached": round(cached, 1), "ratio": round(cached / live, 2)}
            print(f"{n}   {live:8.1f} {cached:8.1f}  {cached / live:.1f}x", flush=True)
    if not quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
