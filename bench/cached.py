"""A frozen cell from the feature cache against the same cell live, at the paper's geometry; and what filling takes.

One training step of the transfer cell AnB with the machine's own precision and threads. The source has
He's initial values: how fast it is does not depend on what it has learned, but how many of its features are not zero
does (bench/features.py has trained ones). Filling is timed against the forward pass to cut 6 that it cannot do
without, both from the stored images.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from fasttransfer.bench.timing import Timing, compare
from fasttransfer.core import devices, tensor_files
from fasttransfer.core.files import cache_folder, make_folder
from fasttransfer.features import cache
from fasttransfer.networks.caffenet import CaffeNet
from fasttransfer.networks.prefix import rounded_cuts
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.study.cells import LAYERS, Cell, base
from fasttransfer.study.configuration import Choices
from fasttransfer.study.paths import weights_file
from fasttransfer.training import study_plan, study_setup
from fasttransfer.training.cohort import Cohort
from fasttransfer.training.cohort_builder import StudyContext, build_cohort


def draw(folder: Path, classes: int) -> Path:
    """An ImageFolder of an image a class and part: coloured noise at all scales."""
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


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """A cache of features and images in `folder`, for a while."""
    before = os.environ.get("FASTTRANSFER_CACHE")
    os.environ["FASTTRANSFER_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["FASTTRANSFER_CACHE"]
        else:
            os.environ["FASTTRANSFER_CACHE"] = before


def open_study(folder: Path, batch: int, classes: int, device: str) -> StudyContext:
    """A study whose base of task A has He's values, and its images: one a class and part, prepared."""
    choices = Choices(
        split="random:0",
        data=str(draw(folder / "images", classes)),
        recipe="caffe",
        batch=batch,
        views=2,
        device=device,
    )
    plan = study_plan.make_plan(choices)
    side = plan.recipe.geometry.store
    store = prepare(Path(choices.data), size=side, cache=cache_folder(), log=lambda _: None)
    setting = study_setup.open_study(plan, store, make_folder(folder / "run"))
    study_setup.write_mean_images(setting, store)
    values = {}
    outputs = plan.recipe.outputs_for("A", plan.classes)
    for name, weight in CaffeNet(plan.recipe.geometry, outputs).named_weights().items():
        values[name] = torch.randn(weight.shape) * (2 / weight[0].numel()) ** 0.5 * (weight.dim() > 1)
    values["conv1.weight"] /= 64  # of pixel differences, which the recipe leaves as they are
    tensor_files.save(weights_file(setting.folder, base("A", 0)), values, {})
    return setting


def steps(setting: StudyContext, n: int, device: torch.device, rounds: int) -> dict[str, Timing]:
    """Training steps of the transfer cell frozen up to n, "live" and "cached"."""
    ways: dict[str, Literal["live", "cache"]] = {"live": "live", "cached": "cache"}
    made = {name: _cohort(setting, [n], device, features) for name, features in ways.items()}
    timed = compare({name: _step_of(cohort) for name, cohort in made.items()}, device, rounds=rounds, sample=0.1)
    for cohort in made.values():
        cohort._target.feed.close()
    return timed


def filling(setting: StudyContext, device: torch.device) -> dict[str, Any]:
    """Seconds to fill all cuts, and of the forward passes over as many images."""
    batch = setting.study.recipe.batch
    live = _cohort(setting, LAYERS, device, "live")
    net, feed = live._sources["A"].net, live._target.feed
    records = 2 * live._target.train_images + live._target.val_images

    def forward(step: int) -> None:
        rounded_cuts(net, feed.train(step).images["A"], [6], batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    forward(0)  # what the libraries set up at first
    passes = -(-records // batch)
    start = time.perf_counter()
    for step in range(passes):
        forward(step)
    computed = (time.perf_counter() - start) / (passes * batch) * records
    feed.close()
    built = []
    for _ in range(2):  # the second one finds all there
        start = time.perf_counter()
        _cohort(setting, LAYERS, device, "cache")._target.feed.close()
        built.append(time.perf_counter() - start)
    filled = built[0] - built[1]
    entries = [entry for entry in cache.list_entries(cache.cache_root()) if entry.info.part == "train"]
    return {
        "records": records,
        "fill_seconds": round(filled, 2),
        "forward_seconds": round(computed, 2),
        "ratio": round(filled / computed, 3),
        "cuts": {
            str(e.key.cut): {
                "packed": e.packed,
                "of_dense": round(e.bytes / e.dense, 4),
                "bytes": e.bytes // (e.images * e.views),
            }
            for e in sorted(entries, key=lambda e: e.key.cut)
        },
    }


def _cohort(
    setting: StudyContext, layers: Sequence[int], device: torch.device, features: Literal["live", "cache"]
) -> Cohort:
    """The transfer cells frozen up to each of `layers`."""
    cells = [Cell(0, "B", "transfer", n) for n in layers]
    return build_cohort(replace(setting, features=features), cells, device)


def _step_of(made: Cohort) -> Callable[[int], object]:
    """One training step after another."""
    steps = iter(range(1 << 30))
    return lambda _: made.train_step(next(steps))


@contextmanager
def settled(setting: StudyContext) -> Iterator[torch.device]:
    """This process as a worker of the study is set, for a while."""
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    study = setting.study
    try:
        yield devices.configure_process(study.device, study.threads, 0)
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = deterministic
