"""What a study comes to: choices settled, its images counted, its networks divided into jobs. Nothing is decoded.

`make_plan` turns what was asked for into a `StudyPlan`, checking all that can be checked before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from fasttransfer.core import devices
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder
from fasttransfer.networks import inputs
from fasttransfer.pipelines import choose_feed, prepare
from fasttransfer.pipelines.dali_feed import has_dali
from fasttransfer.pipelines.store import Kind, expected_bytes
from fasttransfer.study import images, splits
from fasttransfer.study.cells import LAYERS, TASKS, Cell, study_cells
from fasttransfer.study.configuration import BUILTIN, Choices, Feeding
from fasttransfer.study.images import BUILTIN_CLASSES, BUILTIN_LAYERS, BUILTIN_SEEDS, ImageSource
from fasttransfer.study.recipe import Recipe, find_recipes
from fasttransfer.training import memory_use
from fasttransfer.training.planning import JobPlan, plan_jobs

_CLASSES_SEED = 0  # --classes chooses the same classes whatever the seeds of the networks are


@dataclass(frozen=True)
class StudyPlan:
    """A study as far as it can be known without decoding images.

    `classes` are those of each task in label order; `train`, `val` count images per task. `kind` is that of the store,
    which a source has yet to become, `why` what it was chosen for.
    """

    choices: Choices
    layers: tuple[int, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    images: ImageSource
    kind: Kind
    why: str
    classes: dict[str, tuple[str, ...]]
    train: dict[str, int]
    val: dict[str, int]
    device: str
    precision: str
    threads: int

    @property
    def out(self) -> Path:
        """Where the study goes when nobody says."""
        split = Path(self.choices.split).stem if self.choices.split.endswith(".toml") else self.choices.split
        return Path("runs") / f"{self.images.name}-{split.replace(':', '-')}"

    def cells(self) -> tuple[Cell, ...]:
        """Every network of the study."""
        chosen = self.choices
        return study_cells(chosen.targets, chosen.treatments, self.layers, self.seeds)


def make_plan(choices: Choices, feeding: Feeding | None = None) -> StudyPlan:
    """Checks what was asked for and decides what was left open; reads the list of images, decodes none.

    Raises:
        InputError: bad images, split, recipe, device, feed, or a task without enough classes.
    """
    device = devices.choose_device(choices.device)
    found = images.find_source(choices.data)
    recipe = choices.resolve_recipe(found.recipe)
    feeding = feeding or Feeding()
    if feeding.features == "cache" and choices.views is None:
        raise InputError("--features cache: where any crop is shown none can be kept: give --views 1, 2 or 10")
    kind, why = _kind(found, recipe, choices, feeding)
    split = splits.make_split(choices.split, found.classes)
    layers, seeds = choices.layers, choices.seeds
    if choices.data == BUILTIN:
        layers = BUILTIN_LAYERS if layers is None else layers
        seeds = seeds or BUILTIN_SEEDS
        choices = replace(choices, classes=choices.classes or BUILTIN_CLASSES)
    layers = LAYERS if layers is None else layers
    seeds = seeds or (0,)
    if choices.classes is not None:
        split = splits.limit_classes(split, choices.classes, _CLASSES_SEED)
    classes = {"A": split.a, "B": split.b}
    train = {task: found.count("train", members, choices.per_class) for task, members in classes.items()}
    val = {task: found.count("val", members) for task, members in classes.items()}
    for task in classes:
        if not val[task]:
            raise InputError(f"{choices.data}: task {task} has no validation images: add some under val/")
    precision = inputs.choose_precision(choices.precision, device, recipe.geometry)
    return StudyPlan(
        choices,
        layers,
        seeds,
        recipe,
        found,
        kind,
        why,
        classes,
        train,
        val,
        device,
        precision,
        devices.choose_threads(device),
    )


def plan_study_jobs(plan: StudyPlan, cells: Sequence[Cell], workers: int | None = None) -> JobPlan:
    """`cells` cut into jobs for the workers of this machine, with the memory that is free now.

    Args:
        workers: how many there are on a cluster, whose machines are taken to have as much memory a worker.

    Raises:
        InputError: a single network does not fit into it.
    """
    here = devices.count_workers(plan.device, plan.threads)
    workers = workers or here
    resident = _stored(plan) if planned_feed(plan).resident else 0
    free = memory_use.free_memory(plan.device, here, resident)
    free = None if free is None else free * workers // here
    return plan_jobs(plan.recipe, cells, plan.classes, plan.train, plan.val, workers, plan.precision, free)


def _kind(found: ImageSource, recipe: Recipe, choices: Choices, feeding: Feeding) -> tuple[Kind, str]:
    """The kind of store that a study reads, and why."""
    side = recipe.geometry.store
    if found.store is not None:
        if found.store.size != side:
            fitting = find_recipes(found.store.size)
            other = f" or choose --recipe {' or '.join(fitting)}" if fitting else ""
            held = found.store.size
            raise InputError(
                f"{choices.data} holds {held} x {held} images, recipe {recipe.name} needs {side}: "
                f"prepare it again with --size {side}{other}"
            )
        choose_feed.check_feed(found.store, feeding.feed)
        return found.store.kind, "as it is"
    if feeding.feed is not None:
        return choose_feed.KIND_OF[feeding.feed], f"for --feed {feeding.feed}"
    if found.listing is None:
        return "raw", "they are few"
    have = prepare.find_started(found.listing, size=side, cache=cache_folder(), bad_images=choices.bad_images)
    count = len(found.listing.train) + len(found.listing.val)
    return choose_feed.choose_kind(count, side, choose_feed.free_disk(cache_folder()), have, dali=has_dali())


def command_words(choices: Choices) -> list[str]:
    """The arguments of the command line that ask for `choices`: every option that is not at its default."""
    words = ["grid"]
    for option in fields(Choices):
        value = getattr(choices, option.name)
        if value != option.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{option.name.replace('_', '-')}", *map(str, values)]
    return words


def describe_feed(plan: StudyPlan, where: str, device: str) -> str:
    """Which feed reads which images, and where they lie: as each worker decides for itself when it starts."""
    chosen = planned_feed(replace(plan, device=device))
    return f"images: {where} as a {plan.kind} store ({plan.why}); feed: {chosen.about}"


def planned_feed(plan: StudyPlan) -> choose_feed.FeedChoice:
    """The feed that each worker will choose."""
    return choose_feed.choose_feed(
        plan.kind, _stored(plan), plan.device, choose_feed.free_memory(plan.kind, torch.device(plan.device))
    )


def _stored(plan: StudyPlan) -> int:
    """Bytes of the larger task's images as they are stored."""
    side = plan.recipe.geometry.store
    return max(expected_bytes(plan.kind, plan.train[task] + plan.val[task], side) for task in TASKS)
