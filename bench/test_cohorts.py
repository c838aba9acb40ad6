"""Cells trained together against the same cells one after another, and frozen cells from the cache against live ones.

Networks have He's initial values: the speed does not depend on what they have learned, only on how many of their
features are not zero (bench/features.py has trained ones).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fasttransfer.bench.harness import Call, emulates
from fasttransfer.core import devices, tensor_files
from fasttransfer.core.files import cache_folder, make_folder
from fasttransfer.features import cache
from fasttransfer.networks.architecture import rounded_cuts
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI, CaffeNetArchitecture
from fasttransfer.networks.precision import dtype_of
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.study.cells import TASKS, Cell, base
from fasttransfer.study.configuration import Choices
from fasttransfer.study.paths import weights_file
from fasttransfer.training import cost, study_plan, study_setup
from fasttransfer.training.cohort import Cohort
from fasttransfer.training.cohort_builder import StudyContext, build_cohort

Compare = Callable[..., Any]
CPU = torch.device("cpu")


def draw(folder: Path, classes: int, side: int) -> Path:
    """Draw an ImageFolder of an image per class and part: coloured noise at all scales."""
    random = np.random.default_rng(0)
    for number in range(classes):
        for part in ("train", "val"):
            pixels = np.zeros((side, side, 3))
            for coarse in (4, 16, 64, side):
                noise = Image.fromarray(random.integers(0, 256, (coarse, coarse, 3), dtype=np.uint8))
                pixels += np.asarray(noise.resize((side, side), Image.Resampling.BILINEAR)) / 4
            path = folder / part / f"{number:04}" / "0.jpg"
            make_folder(path.parent)
            Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)
    return folder


def open_study(folder: Path, recipe: str, batch: int, classes: int, device: str) -> StudyContext:
    """Return a study on one image per class and part, prepared, with a base of task A that nobody trained."""
    side = 256 if recipe == "caffe" else 64
    images = str(draw(folder / "images", classes, side))
    plan = study_plan.make_plan(
        Choices(split="random:0", data=images, recipe=recipe, batch=batch, views=2, device=device)
    )
    store = prepare(Path(images), size=plan.recipe.network.store, cache=cache_folder(), log=lambda _: None)
    context = study_setup.open_study(plan, dict.fromkeys(TASKS, store), make_folder(folder / "run"))
    study_setup.write_mean_images(context, dict.fromkeys(TASKS, store))
    values = {}
    outputs = plan.recipe.outputs_for("A", plan.classes)
    for name, weight in plan.recipe.network.build(outputs, "fp32", CPU).named_weights().items():
        values[name] = torch.randn(weight.shape) * (2 / weight[0].numel()) ** 0.5 * (weight.dim() > 1)
    if plan.recipe.pixel_scale == 1.0:
        values["conv1.weight"] /= 64  # pixels of 0 to 255, which the recipe does not scale
    tensor_files.save(weights_file(context.folder, base("A", 0)), values, {})
    return context


@pytest.fixture(params=["caffe", "mini"])
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def batch(recipe: str, device: torch.device) -> int:
    return 256 if device.type == "cuda" and recipe == "caffe" else 32


@pytest.fixture
def context(
    recipe: str, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device, quick: bool
) -> Iterator[StudyContext]:
    """A study, its own cache, and this process configured like one of its workers."""
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(tmp_path / "cache"))
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    images = 12 * batch if device.type == "cuda" else 12 * 32
    made = open_study(tmp_path, recipe, batch, 2 * batch if quick else max(2 * batch, images), device.type)
    devices.configure_process(made.study.device, made.study.threads, 0)
    yield made
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = deterministic


def cohort(
    context: StudyContext, layers: Sequence[int], device: torch.device, features: Literal["live", "cache"] = "live"
) -> Cohort:
    """Return the transfer cells that are frozen up to each of `layers`."""
    cells = [Cell(0, "B", "transfer", n) for n in layers]
    return build_cohort(replace(context, features=features), cells, device)


def stepping(cohort: Cohort) -> Call:
    """Return one training step per call."""
    steps = iter(range(1 << 30))
    return lambda i: cohort.train_step(next(steps))


def test_frozen_cells(compare: Compare, context: StudyContext, device: torch.device) -> None:
    """Seven frozen cells of one source: in one cohort, and in seven cohorts that take a step in turn."""
    alone = [stepping(cohort(context, [n], device)) for n in CAFFENET.cuts]
    calls = {
        "one cohort": stepping(cohort(context, CAFFENET.cuts, device)),
        "seven cohorts": lambda i: [call(i) for call in alone],
    }
    recipe = context.study.recipe
    sizes = recipe.network, recipe.outputs_for("B", context.classes)
    cells = [Cell(0, "B", "transfer", n) for n in CAFFENET.cuts]
    macs = sum(cost.cohort_macs(*sizes, [cell]) for cell in cells) / cost.cohort_macs(*sizes, cells)
    facts = {"precision": context.study.precision, "arithmetic_allows": round(macs, 3)}
    compare(calls, sample=0.2, work=7 * recipe.batch, **facts)


@pytest.mark.parametrize("n", [3, 5, 7])
@pytest.mark.parametrize(("recipe", "batch"), [("caffe", 256), ("mini", 16)], ids=["caffe", "mini"])
def test_cached_cell(compare: Compare, context: StudyContext, device: torch.device, n: int) -> None:
    """With each recipe's own batch: the smaller it is, the more of a step is the update of the weights, in both."""
    cached, live = cohort(context, [n], device, "cache"), cohort(context, [n], device)
    calls = {"cached": stepping(cached), "live": stepping(live)}
    compare(calls, sample=0.1, work=context.study.recipe.batch, precision=context.study.precision)
    cached._target.feed.close()
    live._target.feed.close()


def test_filling(benchmark: Any, context: StudyContext, device: torch.device) -> None:
    """Filling all cuts of the cache, against the forward pass to cut 6 that it cannot do without."""
    batch = context.study.recipe.batch
    live = cohort(context, CAFFENET.cuts, device)
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

    def build() -> None:
        cohort(context, CAFFENET.cuts, device, "cache")._target.feed.close()

    benchmark.pedantic(build)  # fills the cache
    start = time.perf_counter()
    build()
    filled = benchmark.stats.stats.median - (time.perf_counter() - start)
    entries = [entry for entry in cache.list_entries(cache.cache_root()) if entry.info.part == "train"]
    sizes = {str(e.key.cut): round(e.bytes / e.dense, 4) for e in sorted(entries, key=lambda e: e.key.cut)}
    seconds = {"filling": [filled], "forward": [computed]}
    benchmark.extra_info.update({"work": [records, "images"], "seconds": seconds, "of_dense": sizes})
    print(f"filling {records} images: {filled:.1f} s, their forward pass {computed:.1f} s", flush=True)


@pytest.mark.parametrize("network", [CAFFENET, CAFFENET_MINI], ids=lambda network: network.name)
def test_first_convolutions(compare: Compare, device: torch.device, network: CaffeNetArchitecture) -> None:
    """The first convolutions of seven fine-tuned cells on the same images, forward and the gradient of their weights.

    "in one" has their outputs and gradients in one tensor, as no cell can use them; "in one, dealt out" copies each
    cell's part out of the one and into the other, as a cohort would have to.
    """
    count, batch = len(network.cuts), 32
    dtype = dtype_of("fp32" if emulates(device, torch.bfloat16) else "bf16")
    layout, channels, side = torch.channels_last, network.channels[0], network.sides[0]

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype).contiguous(memory_format=layout)

    x = made(batch, *network.cut_shape(0))
    weights = [made(*network.weight_shapes(1)[0]).requires_grad_() for _ in range(count)]
    gradients = [made(batch, channels, side, side) for _ in range(count)]
    stacked = torch.cat([w.detach() for w in weights]).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.cat(gradients, 1).contiguous(memory_format=layout)

    def apart(i: int) -> None:
        for w, g in zip(weights, gradients, strict=True):
            torch.autograd.grad(F.conv2d(x, w, stride=network.stride), w, g)

    def in_one(i: int) -> None:
        torch.autograd.grad(F.conv2d(x, stacked, stride=network.stride), stacked, gradient)

    def dealt_out(i: int) -> None:
        y = F.conv2d(x, stacked, stride=network.stride)
        for part in y.detach().split(channels, 1):
            part.contiguous(memory_format=layout)
        torch.autograd.grad(y, stacked, torch.cat(gradients, 1).contiguous(memory_format=layout))

    compare({"apart": apart, "in one": in_one, "in one, dealt out": dealt_out}, sample=0.2, work=count * batch)
