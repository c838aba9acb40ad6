"""Plan a study: resolve the user's choices, count its images, divide its networks into jobs. No image is decoded.

`make_plan` turns `Choices` into a `StudyPlan` and checks all that can be checked before anything is written;
`resume_plan` adapts it to a study that has begun.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import xxhash

from fasttransfer.core import devices
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder, lease_of
from fasttransfer.core.progress import Log
from fasttransfer.networks.precision import choose_precision
from fasttransfer.networks.pretrained import Pretrained, load_pretrained
from fasttransfer.pipelines import choose_feed, prepare
from fasttransfer.pipelines.dali_feed import has_dali, require_dali
from fasttransfer.pipelines.store import Kind, check_both_parts, expected_bytes
from fasttransfer.study import images, paths, records, splits
from fasttransfer.study.cells import TASKS, Cell, study_cells
from fasttransfer.study.configuration import BUILTIN, TWO_DATA_SETS, VERSION, Choices, Feeding, Study
from fasttransfer.study.images import BUILTIN_CLASSES, BUILTIN_SEEDS, ImageSource
from fasttransfer.study.recipe import Recipe, find_recipes
from fasttransfer.training import memory_use
from fasttransfer.training.planning import JobPlan, plan_jobs

_CLASSES_SEED = 0  # --classes chooses the same classes whatever the seeds of the networks are


@dataclass(frozen=True)
class TaskSource:
    """The images of a task.

    Attributes:
        kind: of the store that the images are, or will be prepared as; why: the reason for it, in words.
    """

    images: ImageSource
    kind: Kind
    why: str


@dataclass(frozen=True)
class StudyPlan:
    """A study as far as it can be known without decoding images.

    Attributes:
        sources: task -> its images, the same for both unless the tasks are two data sets.
        classes: task -> its classes in label order; train, val: task -> number of images.
        weights: that were trained elsewhere, where cells copy from them.
    """

    choices: Choices
    layers: tuple[int, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    sources: dict[str, TaskSource]
    classes: dict[str, tuple[str, ...]]
    train: dict[str, int]
    val: dict[str, int]
    device: str
    precision: str
    threads: int
    weights: Pretrained | None = None

    @property
    def out(self) -> Path:
        """The default folder of the study."""
        words = [self.sources[task].images.name for task in self.data_sets]
        if len(words) == 1:
            words.append(Path(self.choices.split).stem if self.choices.split.endswith(".toml") else self.choices.split)
        if self.choices.network is not None:
            words.append(self.choices.network.rpartition(":")[2])
        return Path("runs") / "-".join(words).replace(":", "-")

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The tasks whose sources are all there are: A, or A and B where those differ."""
        return ("A",) if self.choices.data_a is None else TASKS

    def cells(self) -> tuple[Cell, ...]:
        """Return every network of the study."""
        stages = len(self.recipe.network.stages)
        return study_cells(self.choices.targets, self.choices.treatments, self.layers, self.seeds, stages)


def make_plan(choices: Choices, feeding: Feeding | None = None, log: Log = lambda text: None) -> StudyPlan:
    """Check the user's choices and decide what they leave open; reads the lists of images, decodes none.

    Raises:
        InputError: bad images, split, recipe, network, weights, device, feed, or a task without enough classes.
    """
    device = devices.choose_device(choices.device)
    found = _find_sources(choices)
    recipe = choices.resolve_recipe(is_small=any(source.is_small for source in found.values()))
    feeding = feeding or Feeding()
    if feeding.features == "cache" and choices.views is None:
        raise InputError("--features cache: where any crop is shown none can be kept: give --views 1, 2 or 10")
    tasks = TASKS if choices.data_a is not None else TASKS[:1]  # a source of both is looked at once
    sources = {task: TaskSource(found[task], *_choose_kind(found[task], recipe, choices, feeding)) for task in tasks}
    layers, seeds = choices.resolve_layers(recipe.network), choices.seeds or (0,)
    if choices.data_a is not None:
        split = splits.join_data_sets(found["A"].classes, found["B"].classes)
    else:
        split = splits.make_split(choices.split, found["A"].classes)
        if choices.data == BUILTIN:
            seeds = choices.seeds or BUILTIN_SEEDS
            choices = replace(choices, classes=choices.classes or BUILTIN_CLASSES)
    if choices.classes is not None:
        split = splits.limit_classes(split, choices.classes, _CLASSES_SEED)
    classes = split.tasks
    train = {task: source.count("train", classes[task], choices.per_class) for task, source in found.items()}
    val = {task: source.count("val", classes[task]) for task, source in found.items()}
    for task, source in found.items():
        check_both_parts(source.where, source.classes, source.per_class, classes[task])
    return StudyPlan(
        choices,
        layers,
        seeds,
        recipe,
        {task: sources.get(task, sources["A"]) for task in TASKS},
        classes,
        train,
        val,
        device,
        choose_precision(choices.precision, device, recipe.network.crop),
        devices.choose_threads(device),
        None if choices.weights is None else load_pretrained(recipe.network, choices.weights, log),
    )


def _find_sources(choices: Choices) -> dict[str, ImageSource]:
    """Return task -> its images."""
    if choices.data_a is not None and choices.data_b is not None:
        return {"A": images.find_source(choices.data_a), "B": images.find_source(choices.data_b)}
    return dict.fromkeys(TASKS, images.find_source(choices.data))


def make_study(plan: StudyPlan, digests: Mapping[str, str]) -> Study:
    """Return the study that `plan` describes; `digests` are those of each task's prepared images."""
    choices = plan.choices
    a, b = (plan.sources[task].images for task in TASKS)
    is_two = len(plan.data_sets) > 1
    return Study(
        data=a.where,
        images=digests["A"],
        data_b=b.where if is_two else None,
        images_b=digests["B"] if is_two else None,
        split=TWO_DATA_SETS if is_two else choices.split,
        tasks=xxhash.xxh3_128_hexdigest(json.dumps(plan.classes).encode()),
        layers=plan.layers,
        treatments=choices.treatments,
        targets=choices.targets,
        seeds=plan.seeds,
        bad_images=a.store.manifest["bad_pictures"] if a.store else choices.bad_images,
        precision=plan.precision,
        device=plan.device,
        threads=plan.threads,
        recipe=plan.recipe,
        classes=choices.classes,
        per_class=choices.per_class,
        views=choices.views,
        weights=plan.weights.digest if plan.weights else None,
    )


def resume_plan(plan: StudyPlan, feeding: Feeding, out: Path) -> StudyPlan:
    """Return `plan` as the study in `out` goes on with it; the folder may be empty.

    Device, precision and threads are those it began with unless the user chose them, so that it can be resumed on
    another machine; and so is the kind of store, for a source may have become either.

    Raises:
        InputError: another study, or something else, is in `out`.
    """
    if (begun := read_study(out)) is None:
        return plan
    plan = replace(
        plan,
        device=plan.device if plan.choices.device else devices.choose_device(begun.device),
        precision=plan.precision if plan.choices.precision else begun.precision,
        threads=begun.threads,
    )
    known = {task: source.images.store for task, source in plan.sources.items()}  # of a source only when prepared
    digests = {task: begun.images_of(task) if store is None else store.digest for task, store in known.items()}
    require_same(begun, make_study(plan, digests), out)
    if not paths.records_file(out).is_file():
        return plan
    sources, recorded = {}, records.read_results(out)
    for task, source in plan.sources.items():
        if source.images.store is None:
            kind: Kind = recorded.store_kind(task)
            if feeding.feed is not None and choose_feed.KIND_OF[feeding.feed] != kind:
                raise InputError(
                    f"{out}: this study reads a {kind} store, --feed {feeding.feed} reads another kind: drop --feed or "
                    "choose another --out"
                )
            source = replace(source, kind=kind, why="as the study began")
        sources[task] = source
    return replace(plan, sources=sources)


def read_study(out: Path) -> Study | None:
    """Return the study in folder `out`; None where it is empty or missing.

    Raises:
        InputError: it holds something else, or a study that this version does not train.
    """
    path = paths.study_file(out)
    if path.exists():
        if (study := Study.read(path)).version < VERSION:
            raise InputError(
                f"{out}: this study was begun by an earlier fasttransfer, whose studies have no base+: report, advise "
                "and compare still read it; to train, choose another --out"
            )
        return study
    lock = paths.lock_file(out)
    own = (lock.name, lease_of(lock).name, *paths.WORKING_FOLDERS)
    if out.is_dir() and (strangers := [p.name for p in out.iterdir() if p.name not in own]):
        raise InputError(f"{out}: holds {strangers[0]} but no study: choose another --out or empty it")
    return None


def require_feeds(plan: StudyPlan) -> None:
    """Check that this machine can read the stores that the sources become, before images are prepared for nothing.

    Raises:
        InputError: DALI is needed and not installed.
    """
    if any(source.images.store is None and source.kind == "jpeg" for source in plan.sources.values()):
        require_dali()


def require_same(begun: Study, study: Study, out: Path) -> None:
    """Refuse to go on with another study than the one in `out`.

    Raises:
        InputError: they differ.
    """
    if differences := begun.differences(study):
        raise InputError(
            f"{out}: another study is here ({'; '.join(differences)}): choose another --out or drop what differs"
        )


def plan_study_jobs(plan: StudyPlan, cells: Sequence[Cell], workers: int | None = None) -> JobPlan:
    """Cut `cells` into jobs for the workers of this machine, with the memory that is free now.

    Args:
        workers: how many there are on a cluster, whose machines are assumed to have as much memory per worker.

    Raises:
        InputError: a single network does not fit into memory.
    """
    here = devices.count_workers(plan.device, plan.threads)
    workers = workers or here
    resident = max(_stored_bytes(plan, task) if _choose_feed(plan, task).resident else 0 for task in plan.data_sets)
    free = memory_use.free_memory(plan.device, here, resident)
    free = None if free is None else free * workers // here
    return plan_jobs(plan.recipe, cells, plan.classes, plan.train, plan.val, workers, plan.precision, free)


def _choose_kind(source: ImageSource, recipe: Recipe, choices: Choices, feeding: Feeding) -> tuple[Kind, str]:
    """Return the kind of store that the study reads, and the reason in words."""
    side = recipe.network.store
    if source.store is not None:
        if (size := source.store.size) != side:
            fitting = find_recipes(size)
            other = f" or choose --recipe {' or '.join(fitting)}" if fitting else ""
            raise InputError(
                f"{source.where} holds {size} x {size} images, recipe {recipe.name} needs {side}: "
                f"prepare it again with --size {side}{other}"
            )
        choose_feed.check_feed(source.store, feeding.feed)
        return source.store.kind, "as it is"
    if feeding.feed is not None:
        return choose_feed.KIND_OF[feeding.feed], f"for --feed {feeding.feed}"
    if source.listing is None:
        return "raw", "they are few"
    have = prepare.find_started(source.listing, size=side, cache=cache_folder(), bad_images=choices.bad_images)
    count = len(source.listing.train) + len(source.listing.val)
    return choose_feed.choose_kind(count, side, choose_feed.free_disk(cache_folder()), have, dali=has_dali())


def command_words(choices: Choices) -> list[str]:
    """Return the arguments of the command line for `choices`: every option that is not at its default."""
    words = ["grid"]
    for option in fields(Choices):
        value = getattr(choices, option.name)
        if value != option.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{option.name.replace('_', '-')}", *map(str, values)]
    return words


def describe_feed(plan: StudyPlan, where: Mapping[str, str]) -> str:
    """Return in words which feed reads which images, and where they lie.

    Args:
        where: task -> the place of its images.
    """
    lines = []
    for task in plan.data_sets:
        source = plan.sources[task]
        name = "images" if len(plan.data_sets) == 1 else f"images of task {task}"
        kind = f"a {source.kind} store ({source.why})"
        lines.append(f"{name}: {where[task]} as {kind}; feed: {_choose_feed(plan, task).about}")
    return "\n".join(lines)


def _choose_feed(plan: StudyPlan, task: str) -> choose_feed.FeedChoice:
    """Return the feed that each worker will choose when it starts."""
    kind = plan.sources[task].kind
    free = choose_feed.free_memory(kind, torch.device(plan.device))
    return choose_feed.choose_feed(kind, _stored_bytes(plan, task), plan.device, free)


def _stored_bytes(plan: StudyPlan, task: str) -> int:
    """Return the bytes of the images of a task, or of the larger of those that share a source, as they are stored."""
    kind, side = plan.sources[task].kind, plan.recipe.network.store
    tasks = TASKS if len(plan.data_sets) == 1 else (task,)
    return max(expected_bytes(kind, plan.train[each] + plan.val[each], side) for each in tasks)
