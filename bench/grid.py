"""The whole study twice, to the end: by this project and as one would write it in plain PyTorch.

Both start from the same JPEG files with nothing prepared, in a process of their own, on the same recipe, seed, split
and number of steps. What is compared: time, images trained a second, the share of what the arithmetic alone would
take, memory, and how the networks score. Two programs with draws of their own never give the same scores: how far two
studies of this project with different seeds are apart says what "the same" means.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing as mp
import os
import shlex
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fasttransfer.bench.baselines import study as plain
from fasttransfer.bench.baselines.caffenet import products_alone
from fasttransfer.bench.studies import Peak
from fasttransfer.core import devices
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import disk_errors
from fasttransfer.networks import inputs
from fasttransfer.networks.geometry import Geometry
from fasttransfer.pipelines import synthetic
from fasttransfer.pipelines.layouts import ImageFile
from fasttransfer.study import images, records
from fasttransfer.study.cells import TASKS, Cell
from fasttransfer.study.configuration import BUILTIN, Choices
from fasttransfer.study.images import BUILTIN_CLASSES, BUILTIN_LAYERS, BUILTIN_TRAIN, BUILTIN_VAL
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training import cost
from fasttransfer.training.study_plan import StudyPlan, make_plan

PARTS = ("limit", "cohort", "plain")
QUICK_EPOCHS, QUICK_LAYERS = 1.0, (1, 4, 7)
_SIDE = 1024  # of the matrices whose product says what the machine can do
_SAMPLE = 0.3  # seconds a sample of a rate takes at least

Found = dict[str, Any]
Top1 = Mapping[str, float]


@dataclass(frozen=True)
class GridBenchmark:
    """What was asked for: where the images come from (None: the built-in ones), and limits on the study."""

    source: Path | None
    epochs: float | None
    classes: int | None
    device: str
    quick: bool

    @property
    def words(self) -> list[str]:
        """The options of the command but for where it writes."""
        found = ["--data", self.source.name] if self.source else []
        found += ["--epochs", f"{self.epochs:g}"] if self.epochs is not None else []
        found += ["--classes", str(self.classes)] if self.classes is not None else []
        return [*found, *["--quick"] * self.quick]


def measure(asked: GridBenchmark, chosen: Collection[str], folder: Path, console: Console) -> Iterator[Found]:
    """Yields what is known as soon as it is: the study, the limit, either way to the end, and the comparison.

    Args:
        chosen: of `PARTS`.
        folder: scratch, on the disk where stores are kept.

    Raises:
        InputError: images, split or limits that make no study, or images that are no files.
    """
    plan = _plan(asked, folder)
    cells = plan.cells()
    trained = sum(plan.recipe.steps_for(plan.train[c.target]) for c in cells) * plan.recipe.batch
    yield {
        "study": {
            "images": asked.source.name if asked.source else "built-in",
            "networks": len(cells),
            "classes": {task: len(plan.classes[task]) for task in TASKS},
            "train_pictures": plan.train,
            "val_pictures": plan.val,
            "recipe": plan.recipe.name,
            "geometry": plan.recipe.geometry.name,
            "batch": plan.recipe.batch,
            "steps": {task: plan.recipe.steps_for(plan.train[task]) for task in TASKS},
            "images_trained": trained,
        }
    }
    limit: Found = {}
    if "limit" in chosen:
        limit = _limit(plan, cells)
        yield {"limit": limit}
    top1: dict[str, Top1] = {}
    found: dict[str, Found] = {}
    if "cohort" in chosen:
        found["cohort"], top1["cohort"] = _by_cohort(plan, 0, folder, console)
        yield {"cohort": _rated(found["cohort"], "cohort", trained, limit)}
    if "plain" in chosen:
        found["plain"], top1["plain"] = _plainly(plan, cells, folder, console)
        yield {"plain": _rated(found["plain"], "plain", trained, limit)}
    if len(found) == 2:
        _, top1["other seed"] = _by_cohort(plan, 1, folder, console)
        yield {
            "plain_over_cohort": round(found["plain"]["wall_seconds"] / found["cohort"]["wall_seconds"], 3),
            "agreement": agreement(cells, top1["cohort"], top1["plain"], top1["other seed"]),
        }
    yield {"top1": {way: {name: round(value, 4) for name, value in scores.items()} for way, scores in top1.items()}}


def _plan(asked: GridBenchmark, folder: Path) -> StudyPlan:
    """The study, on images that are files: the built-in ones are drawn, which is neither program's work."""
    source, classes, layers = asked.source, asked.classes, None
    layout = images.find_source(str(source) if source else BUILTIN)
    if source is None:
        source = folder / "images"
        side = load_recipe(layout.recipe).geometry.store
        synthetic.render(source, train=BUILTIN_TRAIN, val=BUILTIN_VAL, size=side)
        classes, layers = classes or BUILTIN_CLASSES, BUILTIN_LAYERS
    elif source.is_file():
        source = _unpacked(source, folder / "images")
    chosen = Choices(
        data=str(source),
        recipe=layout.recipe,
        epochs=QUICK_EPOCHS if asked.quick and asked.epochs is None else asked.epochs,
        classes=classes,
        device=asked.device,
        layers=QUICK_LAYERS if asked.quick else layers,
        seeds=(0,),
    )
    plan = make_plan(chosen)
    listing = plan.images.listing
    if listing is None or not all((listing.source / each.path).is_file() for each in listing.train + listing.val):
        raise InputError(f"--data {asked.source}: the plain study reads image files: name a folder that holds them")
    return plan


def _unpacked(tar: Path, folder: Path) -> Path:
    """The files of an uncompressed tar in `folder`."""
    try:
        with disk_errors(folder), tarfile.open(tar, "r:") as archive:
            archive.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise InputError(f"--data {tar}: cannot be unpacked ({error}): name a folder of images") from error
    return folder


# -- what the arithmetic takes --------------------------------------------------------------------------------------


def _limit(plan: StudyPlan, cells: Sequence[Cell]) -> Found:
    """Multiply-adds of the study both ways, the machine's rates, and the seconds they come to.

    Rates are those of all workers of a study together, each with a study's threads: of a product of large matrices, and
    of the network's own convolutions and products, forward and backward.
    """
    jobs: dict[tuple[bool, str], list[Cell]] = {}
    for cell in cells:
        jobs.setdefault((cell.source is None, cell.target), []).append(cell)
    counts = {
        "cohort": sum(_multiply_adds(plan, together) for together in jobs.values()),
        "plain": sum(_multiply_adds(plan, [cell]) for cell in cells),
    }
    rates = _rates(plan)
    return {
        "multiply_adds": counts,
        "multiply_adds_per_second": {name: round(rate) for name, rate in rates.items()},
        "seconds": {
            way: {name: round(count / rate, 2) for name, rate in rates.items()} for way, count in counts.items()
        },
    }


def _multiply_adds(plan: StudyPlan, cells: Sequence[Cell]) -> int:
    """Training and validation of `cells` on one stream."""
    recipe, task = plan.recipe, cells[0].target
    sizes = recipe.geometry, recipe.outputs_for(task, plan.classes)
    steps = recipe.steps_for(plan.train[task])
    validated = len(recipe.check_steps(steps)) * plan.val[task]
    return steps * recipe.batch * cost.cohort_macs(*sizes, cells) + validated * cost.validation_macs(*sizes, cells)


def _rates(plan: StudyPlan) -> dict[str, float]:
    """What is measured -> multiply-adds per second of all workers together."""
    workers = devices.count_workers(plan.device, plan.threads)
    context = mp.get_context("spawn")
    outputs = plan.recipe.outputs_for("A", plan.classes)
    work = plan.recipe.geometry, outputs, plan.recipe.batch, plan.precision, plan.device, plan.threads
    with context.Manager() as shared:
        barrier = shared.Barrier(workers)
        with context.Pool(workers) as pool:
            found = pool.starmap(rates_of_one, [(*work, barrier.wait)] * workers, chunksize=1)
    return {name: sum(rates[name] for rates in found) for name in found[0]}


def rates_of_one(
    geometry: Geometry, outputs: int, batch: int, precision: str, device: str, threads: int, meet: Callable[[], object]
) -> dict[str, float]:
    """What is measured -> multiply-adds per second of one process; `meet` waits until the others are as far."""
    torch.set_num_threads(threads)
    devices.keep_freed_memory()
    dtype, place = inputs.dtype_of(precision), torch.device(device)
    one, other = (torch.randn(_SIDE, _SIDE, dtype=dtype, device=place) for _ in range(2))
    products = products_alone(geometry, outputs, batch, place, dtype)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "matrix product": (lambda: torch.mm(one, other), _SIDE**3),
        "the network's products": (products, batch * cost.trained_macs(geometry, outputs, Cell(0, "A", "base", 0))),
    }
    found = {}
    for name, (call, macs) in calls.items():
        call()
        meet()
        samples = [_seconds(call, place) for _ in range(7)]
        found[name] = macs / statistics.median(samples)
    return found


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, by repeating it."""
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < _SAMPLE or not count:
        call()
        count += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return spent / count


# -- both ways ------------------------------------------------------------------------------------------------------


def _by_cohort(plan: StudyPlan, seed: int, folder: Path, console: Console) -> tuple[Found, Top1]:
    """The study by `fasttransfer grid`, as a user would run it; what it took, and how each network scored."""
    choices, out = plan.choices, folder / f"run-{seed}"
    words = ["grid", "--data", choices.data, "--recipe", str(choices.recipe), "--device", plan.device]
    words += ["--layers", *map(str, plan.layers), "--seeds", str(seed)]
    words += ["--epochs", str(choices.epochs)] if choices.epochs is not None else []
    words += ["--classes", str(choices.classes)] if choices.classes is not None else []
    found = _run(["-m", "fasttransfer", *words, "--out", str(out)], folder, console)
    shown = ["IMAGES" if word == choices.data else word for word in words]
    results = records.read_results(out).results
    return {"command": shlex.join(["fasttransfer", *shown]), **found}, {r.name: r.last_top1 or 0.0 for r in results}


def _plainly(plan: StudyPlan, cells: Sequence[Cell], folder: Path, console: Console) -> tuple[Found, Top1]:
    """The study by `baselines.study` under the fastest of its settings, which are tried first and not counted."""
    job, tried, result = folder / "job.json", folder / "tried.json", folder / "plain.json"
    module = ["-m", "fasttransfer.bench.baselines.study"]
    job.write_text(json.dumps(job_of(plan, cells, None)))
    _run([*module, "tune", str(job), str(tried)], folder, console)
    settings = json.loads(tried.read_text())
    best = plain.Settings(**{f.name: settings[0][f.name] for f in dataclasses.fields(plain.Settings)})
    job.write_text(json.dumps(job_of(plan, cells, best)))
    found = _run([*module, "train", str(job), str(result)], folder, console)
    top1 = {name: checks[-1] for name, checks in json.loads(result.read_text()).items()}
    return {"settings": asdict(best), "settings_tried": settings, **found}, top1


def job_of(plan: StudyPlan, cells: Iterable[Cell], settings: plain.Settings | None) -> Found:
    """The study in the form that `baselines.study` reads."""
    listing, recipe = plan.images.listing, plan.recipe
    assert listing is not None

    def files(part: Sequence[ImageFile], task: str) -> list[tuple[str, int]]:
        label_of = {name: label for label, name in enumerate(plan.classes[task])}
        named = ((each, listing.classes[each.label]) for each in part)
        return [(str(listing.source / each.path), label_of[name]) for each, name in named if name in label_of]

    tasks = {}
    for task in TASKS:
        train, val = files(listing.train, task), files(listing.val, task)
        steps = recipe.steps_for(len(train))
        tasks[task] = asdict(
            plain.Task(train, val, recipe.outputs_for(task, plan.classes), steps, list(recipe.check_steps(steps)))
        )
    networks = [plain.Network(c.name, c.target, c.source, c.n, c.frozen, c.mean_of) for c in cells]
    return {
        "tasks": tasks,
        "networks": [asdict(network) for network in networks],
        "geometry": asdict(recipe.geometry),
        "recipe": {name: value for name, value in asdict(recipe).items() if name != "geometry"},
        "seed": plan.seeds[0],
        "device": plan.device,
        "settings": asdict(settings) if settings else None,
    }


def _run(words: Sequence[str], folder: Path, console: Console) -> Found:
    """Runs Python with `words` to the end; seconds and memory that it and its children took."""
    environment = os.environ | {"FASTTRANSFER_CACHE": str(folder / "cache")}
    log = folder / "log.txt"
    with log.open("w") as file:
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, *words], env=environment, stdout=file, stderr=subprocess.STDOUT)
        peak = Peak(process.pid)
        try:
            with console.status(shlex.join([Path(word).name for word in words[1:5]])):
                code = process.wait()
        finally:
            process.kill()
            seconds, most = time.monotonic() - start, peak.stop()
    if code:
        raise RuntimeError(f"{shlex.join(words)} ended with exit code {code}:\n{log.read_text()[-4000:]}")
    return {"wall_seconds": round(seconds, 2), "peak_memory_bytes": most}


def _rated(found: Found, way: str, trained: int, limit: Found) -> Found:
    """`found` with what follows from it: the rate of training, and the share of the limits on the way's own sums."""
    seconds = found["wall_seconds"]
    shares = {name: round(least / seconds, 4) for name, least in limit["seconds"][way].items()} if limit else {}
    return found | {"images_per_second": round(trained / seconds, 1), "of_limit": shares}


# -- whether they agree ---------------------------------------------------------------------------------------------


def agreement(cells: Sequence[Cell], cohort: Top1, plainly: Top1, other: Top1) -> Found:
    """How far the plain study's top-1 are from the cohort's, beside the cohort's under another seed.

    A difference is one network's top-1 less that of the same network in the cohort's study. Networks that share a
    target and what they copy from go up and down with one base, so the noise of the mean difference is taken from such
    groups: the root mean square of their mean differences between two seeds, by the root of their number. Within two
    and a half of it the two ways agree: the 95 % point of Student's t with six degrees of freedom, as many as there are
    groups in a study of both tasks.
    """
    names = [cell.name for cell in cells]
    groups: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        groups.setdefault((cell.target, cell.source or cell.target), []).append(cell.name)
    seeds = {name: other[name] - cohort[name] for name in names}
    ways = {name: plainly[name] - cohort[name] for name in names}
    of_groups = [statistics.fmean(seeds[name] for name in group) for group in groups.values()]
    noise = math.sqrt(statistics.fmean(mean**2 for mean in of_groups) / len(of_groups))
    mean = statistics.fmean(ways.values())
    return {
        "mean_top1": {
            way: round(statistics.fmean(scores[name] for name in names), 4)
            for way, scores in (("cohort", cohort), ("plain", plainly), ("cohort, other seed", other))
        },
        "plain - cohort": {"mean": round(mean, 4), "spread": round(statistics.pstdev(ways.values()), 4)},
        "other seed - cohort": {
            "mean": round(statistics.fmean(seeds.values()), 4),
            "spread": round(statistics.pstdev(seeds.values()), 4),
        },
        "noise_of_mean": round(noise, 4),
        "agree": abs(mean) <= 2.5 * noise,
        "by_treatment": {
            treatment: round(statistics.fmean(ways[c.name] for c in cells if c.treatment == treatment), 4)
            for treatment in dict.fromkeys(c.treatment for c in cells)
        },
    }
