"""The case of `fasttransfer bench grid`: a whole study to the end, by this project and in plain PyTorch.

Both start from the same JPEG files with nothing prepared, in a process of their own, on the same recipe, seed, split
and number of steps. Compared are time, the share of the time that the arithmetic alone would take, memory, and the
networks' scores. Two programs with draws of their own never give the same scores; how far two studies of this project
with different seeds are apart says how much that means.
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
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fasttransfer.bench.baselines import study as plain
from fasttransfer.bench.baselines.caffenet import products_alone
from fasttransfer.bench.harness import Rounds
from fasttransfer.core import devices
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import disk_errors
from fasttransfer.networks.caffenet import CaffeNetArchitecture
from fasttransfer.networks.find import describe_network
from fasttransfer.networks.precision import dtype_of
from fasttransfer.pipelines import synthetic
from fasttransfer.pipelines.layouts import ImageFile
from fasttransfer.study import images, records
from fasttransfer.study.cells import TASKS, Cell
from fasttransfer.study.configuration import BUILTIN, Choices
from fasttransfer.study.images import BUILTIN_CLASSES, BUILTIN_TRAIN, BUILTIN_VAL
from fasttransfer.study.recipe import default_recipe, load_recipe
from fasttransfer.training import cost
from fasttransfer.training.study_plan import StudyPlan, make_plan

QUICK_EPOCHS, QUICK_LAYERS = 1.0, (1, 4, 7)
_SIDE = 1024  # of the large matrices
_SAMPLE = 0.3  # seconds a sample of a rate takes at least

Found = dict[str, Any]
Top1 = Mapping[str, float]


def plan_study(
    source: Path | None, folder: Path, *, epochs: float | None, classes: int | None, device: str, quick: bool
) -> StudyPlan:
    """Return the study, on images that are files; the built-in ones are drawn first, which is neither program's work.

    Args:
        source: the images; None for the built-in ones.
        folder: scratch, on the disk where stores are kept.
        quick: an epoch and three cuts, unless `epochs` says otherwise.

    Raises:
        InputError: the images, split or limits make no study, or the images are no files.
    """
    asked, layers = source, None
    recipe = default_recipe(None, is_small=images.find_source(str(source) if source else BUILTIN).is_small)
    if source is None:
        source, network = folder / "images", load_recipe(recipe).network
        synthetic.render(source, train=BUILTIN_TRAIN, val=BUILTIN_VAL, size=network.store)
        classes, layers = classes or BUILTIN_CLASSES, Choices(data=BUILTIN).resolve_layers(network)
    elif source.is_file():
        source = _unpacked(source, folder / "images")
    chosen = Choices(
        data=str(source),
        recipe=recipe,
        epochs=QUICK_EPOCHS if quick and epochs is None else epochs,
        classes=classes,
        device=device,
        layers=QUICK_LAYERS if quick else layers,
        seeds=(0,),
    )
    plan = make_plan(chosen)
    listing = plan.sources["A"].images.listing
    if listing is None or not all((listing.source / each.path).is_file() for each in listing.train + listing.val):
        raise InputError(f"--data {asked}: the plain study reads image files: name a folder that holds them")
    return plan


def _unpacked(tar: Path, folder: Path) -> Path:
    """Unpack an uncompressed tar into `folder`."""
    try:
        with disk_errors(folder), tarfile.open(tar, "r:") as archive:
            archive.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise InputError(f"--data {tar}: cannot be unpacked ({error}): name a folder of images") from error
    return folder


def describe(plan: StudyPlan) -> Found:
    """Return the facts about a study that its numbers depend on."""
    recipe, cells = plan.recipe, plan.cells()
    steps = {task: recipe.steps_for(plan.train[task]) for task in TASKS}
    return {
        "networks": len(cells),
        "classes": {task: len(plan.classes[task]) for task in TASKS},
        "train_images": plan.train,
        "val_images": plan.val,
        "recipe": recipe.name,
        "batch": recipe.batch,
        "steps": steps,
        "images_trained": sum(steps[cell.target] for cell in cells) * recipe.batch,
    }


def compute_limit(plan: StudyPlan) -> Found:
    """Return the study's multiply-adds both ways, the machine's rates, and the seconds they come to.

    Rates are those of all workers of a study together, each with a study's threads: of a product of large matrices, and
    of the network's own convolutions and products, forward and backward.
    """
    jobs: dict[tuple[bool, str], list[Cell]] = {}
    cells = plan.cells()
    for cell in cells:
        jobs.setdefault((cell.source is None, cell.target), []).append(cell)
    counts = {
        "fasttransfer": sum(_multiply_adds(plan, together) for together in jobs.values()),
        "plain PyTorch": sum(_multiply_adds(plan, [cell]) for cell in cells),
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
    """Count training and validation of `cells` on one stream."""
    recipe, task = plan.recipe, cells[0].target
    sizes = recipe.network, recipe.outputs_for(task, plan.classes)
    steps = recipe.steps_for(plan.train[task])
    validated = len(recipe.check_steps(steps)) * plan.val[task]
    return steps * recipe.batch * cost.cohort_macs(*sizes, cells) + validated * cost.validation_macs(*sizes, cells)


def _rates(plan: StudyPlan) -> dict[str, float]:
    """Return the multiply-adds per second of all workers together, by what is measured."""
    workers = devices.count_workers(plan.device, plan.threads)
    context = mp.get_context("spawn")
    outputs = plan.recipe.outputs_for("A", plan.classes)
    work = plan.recipe.network, outputs, plan.recipe.batch, plan.precision, plan.device, plan.threads
    with context.Manager() as shared:
        barrier = shared.Barrier(workers)
        with context.Pool(workers) as pool:
            found = pool.starmap(rates_of_one, [(*work, barrier.wait)] * workers, chunksize=1)
    return {name: sum(rates[name] for rates in found) for name in found[0]}


def rates_of_one(
    network: CaffeNetArchitecture,
    outputs: int,
    batch: int,
    precision: str,
    device: str,
    threads: int,
    meet: Callable[[], object],
) -> dict[str, float]:
    """Return the multiply-adds per second of one process; `meet` waits until the others are as far."""
    torch.set_num_threads(threads)
    devices.keep_freed_memory()
    dtype, place = dtype_of(precision), torch.device(device)
    one, other = (torch.randn(_SIDE, _SIDE, dtype=dtype, device=place) for _ in range(2))
    products = products_alone(network, outputs, batch, place, dtype)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "matrix product": (lambda: torch.mm(one, other), _SIDE**3),
        "the network's products": (products, batch * cost.trained_macs(network, outputs, Cell(0, "A", "base", 0))),
    }
    found = {}
    for name, (call, macs) in calls.items():
        timer = Rounds({name: lambda i, call=call: call()}, place, sample=_SAMPLE)  # type: ignore[misc]
        meet()
        found[name] = macs / statistics.median(timer.run(7)[name])
    return found


def train_together(plan: StudyPlan, seed: int, folder: Path) -> tuple[Found, Top1]:
    """Train the study with `fasttransfer grid`, as a user would; return what it took and each network's top-1."""
    choices, out = plan.choices, folder / f"run-{seed}"
    words = ["grid", "--data", choices.data, "--recipe", str(choices.recipe), "--device", plan.device]
    words += ["--layers", *map(str, plan.layers), "--seeds", str(seed)]
    words += ["--epochs", str(choices.epochs)] if choices.epochs is not None else []
    words += ["--classes", str(choices.classes)] if choices.classes is not None else []
    found = run_python(["-m", "fasttransfer", *words, "--out", str(out)], folder)
    shown = ["IMAGES" if word == choices.data else word for word in words]
    results = records.read_results(out).results
    return {"command": shlex.join(["fasttransfer", *shown]), **found}, {r.name: r.last_top1 or 0.0 for r in results}


def train_plainly(plan: StudyPlan, folder: Path) -> tuple[Found, Top1]:
    """Train the study with `baselines.study` under the fastest of its settings, which are tried first, not counted."""
    cells = plan.cells()
    job, tried, result = folder / "job.json", folder / "tried.json", folder / "plain.json"
    module = ["-m", "fasttransfer.bench.baselines.study"]
    job.write_text(json.dumps(job_of(plan, cells, None)))
    run_python([*module, "tune", str(job), str(tried)], folder)
    settings = json.loads(tried.read_text())
    best = plain.Settings(**{f.name: settings[0][f.name] for f in dataclasses.fields(plain.Settings)})
    job.write_text(json.dumps(job_of(plan, cells, best)))
    found = run_python([*module, "train", str(job), str(result)], folder)
    top1 = {name: checks[-1] for name, checks in json.loads(result.read_text()).items()}
    return {"settings": asdict(best), "settings_tried": settings, **found}, top1


def job_of(plan: StudyPlan, cells: Iterable[Cell], settings: plain.Settings | None) -> Found:
    """Return the study in the form that `baselines.study` reads."""
    listing, recipe = plan.sources["A"].images.listing, plan.recipe
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
        "geometry": describe_network(recipe.network),
        "recipe": {name: value for name, value in asdict(recipe).items() if name != "network"},
        "seed": plan.seeds[0],
        "device": plan.device,
        "settings": asdict(settings) if settings else None,
    }


def run_python(words: Sequence[str], folder: Path) -> Found:
    """Run Python with `words` to the end; return the seconds and the memory that it and its children took."""
    environment = os.environ | {"FASTTRANSFER_CACHE": str(folder / "cache")}
    log = folder / "log.txt"
    with log.open("w") as file:
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, *words], env=environment, stdout=file, stderr=subprocess.STDOUT)
        peak = PeakMemory(process.pid)
        try:
            code = process.wait()
        finally:
            process.kill()
            seconds, most = time.monotonic() - start, peak.stop()
    if code:
        raise RuntimeError(f"{shlex.join(words)} ended with exit code {code}:\n{log.read_text()[-4000:]}")
    return {"wall_seconds": round(seconds, 2), "peak_memory_bytes": most}


class PeakMemory:
    """The largest memory of a process and its children together (Linux), sampled twice a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most, self._over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop and return the bytes; pages that processes share are counted once (proportional set size)."""
        self._over.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._most = max(self._most, sum(_memory(pid) for pid in _family(self._pid)))


def _family(pid: int) -> list[int]:
    """Return `pid` and its living descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            found += _family(int(child))
    return found


def _memory(pid: int) -> int:
    """Return the proportional set size of a process in bytes; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def agreement(cells: Sequence[Cell], ours: Top1, theirs: Top1, other: Top1) -> Found:
    """Return how far the plain study's top-1 are from ours, beside ours under another seed.

    A difference is one network's top-1 less that of the same network in our study. Networks that share a
    target and what they copy from go up and down with one base, so the noise of the mean difference is taken from such
    groups: the root mean square of their mean differences between two seeds, by the root of their number. Within two
    and a half of it the two ways agree: the 95 % point of Student's t with six degrees of freedom, as many as there are
    groups in a study of both tasks.
    """
    names = [cell.name for cell in cells]
    groups: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        groups.setdefault((cell.target, cell.source or cell.target), []).append(cell.name)
    seeds = {name: other[name] - ours[name] for name in names}
    ways = {name: theirs[name] - ours[name] for name in names}
    of_groups = [statistics.fmean(seeds[name] for name in group) for group in groups.values()]
    noise = math.sqrt(statistics.fmean(mean**2 for mean in of_groups) / len(of_groups))
    mean = statistics.fmean(ways.values())
    return {
        "mean_top1": {
            way: round(statistics.fmean(scores[name] for name in names), 4)
            for way, scores in (("fasttransfer", ours), ("plain PyTorch", theirs), ("fasttransfer, other seed", other))
        },
        "plain - ours": {"mean": round(mean, 4), "spread": round(statistics.pstdev(ways.values()), 4)},
        "other seed - ours": {
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
