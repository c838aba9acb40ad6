"""Predict time, memory and disk of a study before any of it is trained."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fasttransfer.core import machine
from fasttransfer.core.console import make_console, print_line
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder, require_writable
from fasttransfer.core.progress import format_bytes, format_duration
from fasttransfer.core.tables import plain_table
from fasttransfer.features import cut_timing
from fasttransfer.pipelines import choose_feed, mean_images, prepare
from fasttransfer.pipelines.layouts import ImageFile, Listing, list_images
from fasttransfer.pipelines.store import Store, expected_bytes
from fasttransfer.pipelines.streams import select_task_images
from fasttransfer.study import paths, records
from fasttransfer.study.cells import TASKS, Cell
from fasttransfer.study.configuration import Choices, Feeding
from fasttransfer.study.images import BUILTIN_TRAIN, BUILTIN_VAL
from fasttransfer.training import event_files, memory_use, simulation, study_plan
from fasttransfer.training.checkpoint import checkpoint_step
from fasttransfer.training.job_times import SECONDS, time_jobs
from fasttransfer.training.planning import JobPlan, TrainingJob
from fasttransfer.training.study_plan import (
    StudyPlan,
    TaskSource,
    describe_feed,
    make_plan,
    make_study,
    require_feeds,
    resume_plan,
)
from fasttransfer.training.workers import require_engine

# The report takes as long as so many starts of a process, and so many more per network: both are imports and drawing
# in Python, which slow down alike on a loaded machine. From one report of 72 networks, 5.4 s.
_REPORT, _PER_NETWORK = 1.2, 0.004
_SAMPLE = 192  # images that are prepared to see how long one takes
_FEW = 16  # images that are prepared to see how long the rest takes


@dataclass(frozen=True)
class Forecast:
    """The cost of what is left of a study.

    Attributes:
        seconds: part -> wall seconds, in the order in which they begin.
        division: what is trained together.
        free: bytes of memory that workers may have; None where the system does not say.
        disk: what -> bytes that will be written; checkpoints are removed again.
    """

    seconds: Mapping[str, float]
    division: JobPlan
    free: int | None
    disk: Mapping[str, int]

    @property
    def memory(self) -> int:
        """Bytes of all processes at their peak."""
        return memory_use.OWN + self.division.bytes  # of the process that the user starts, and of the workers


@dataclass(frozen=True)
class StudyProgress:
    """The cells that have ended, and the steps in the checkpoints of those in training."""

    ended: frozenset[Cell]
    steps: Mapping[Cell, int]


def dry_run(
    choices: Choices,
    out: Path | None = None,
    *,
    feeding: Feeding | None = None,
    console: Console | None = None,
    tensorboard: bool = False,
) -> None:
    """Print the networks, what depends on what, and the time, memory and disk that what is left of them will take.

    Writes nothing but temporary files, of a few images and one network. Takes about as long as it takes to start the
    workers twice, and a few seconds for each shape of job.

    Raises:
        InputError: as `grid.run`, as far as it can be known without decoding images.
    """
    console, feeding = console or make_console(), feeding or Feeding()
    require_engine(feeding.engine)
    plan = make_plan(choices, feeding)
    out = out or plan.out
    require_writable(out)
    if tensorboard:
        event_files.require_events(out)
    plan = resume_plan(plan, feeding, out)
    require_feeds(plan)
    for note in _notes(plan):
        print_line(console, note)
    progress = read_progress(plan, out)
    division = study_plan.plan_study_jobs(plan, _unfinished(plan, progress))
    console.print(_list_networks(plan))
    for task in TASKS:
        print_line(
            console,
            f"task {task}: {len(plan.classes[task])} classes, {plan.train[task]:,} training and {plan.val[task]:,} "
            "validation images",
        )
    for line in _describe(plan, out, progress, forecast(plan, progress, division)):
        print_line(console, line)
    where = {task: source.images.where for task, source in plan.sources.items()}
    print_line(console, describe_feed(plan, where))
    if choices.views is not None:
        print_features(plan, plan.cells(), feeding.features, console)


def _notes(plan: StudyPlan) -> Iterator[str]:
    """Yield what a run logs about the images that it leaves out."""
    for task in plan.data_sets:
        if (listing := plan.sources[task].images.listing) is not None:
            yield from (f"{listing.source}: {note}" for note in listing.notes)


def print_features(plan: StudyPlan, cells: Sequence[Cell], mode: str, console: Console) -> None:
    """Print which features of the frozen cells are kept, each source's over each target's images.

    Args:
        mode: "auto", "cache" or "live", see `Feeding.features`.
    """
    views, cuts = (
        plan.choices.views,
        cut_timing.cuts_read(plan.recipe.network, (cell.n for cell in cells if cell.frozen)),
    )
    if mode == "live" or not views or not cuts:
        print_line(console, f"views: {views}; frozen features run live")
        return
    records = max(views * plan.train[task] + plan.val[task] for task in TASKS)
    sources = {(cell.source, cell.target, cell.seed) for cell in cells if cell.frozen}
    try:
        rows = cut_timing.forecast_cuts(
            plan.recipe, records, cuts, device=plan.device, precision=plan.precision, threads=plan.threads
        )
    except InputError as error:
        print_line(console, f"views: {views}; frozen features run live: {error}")
        return
    print_line(console, f"views: {views}; features of each of {len(sources)} frozen sources, times an image and view:")
    console.print(rows)
    if mode == "cache":
        print_line(console, "--features cache: all are kept, whatever reading takes")


def _list_networks(plan: StudyPlan) -> Table:
    rows = plain_table("network", "treatment", "trained on", "copies", "steps", "needs")
    for cell in plan.cells():
        copies = (
            "" if cell.source is None else f"1-{cell.n} of {cell.source}, {'frozen' if cell.frozen else 'fine-tuned'}"
        )
        steps = plan.recipe.steps_for(plan.train[cell.target])
        seed = f" (seed {cell.seed})" if len(plan.seeds) > 1 else ""
        rows.add_row(
            cell.name + seed,
            cell.treatment,
            cell.target,
            copies,
            f"{steps:,}",
            cell.needs.name if cell.needs else "",
        )
    return rows


def _describe(plan: StudyPlan, out: Path, progress: StudyProgress, predicted: Forecast) -> Iterator[str]:
    """Return the forecast in lines."""
    cells, left, division = plan.cells(), _unfinished(plan, progress), predicted.division
    networks = f"{len(cells)} networks" if len(left) == len(cells) else f"{len(left)} of {len(cells)} networks are left"
    timed = "from steps timed now" if left else "all are trained"
    if plan.device == "cuda":
        timed += " (on GPUs this estimate has not been held against a whole study)"
    yield (
        f"{networks}, recipe {plan.recipe.name}, {plan.precision} on {plan.device}, {division.workers} at a time: "
        f"about {format_duration(sum(predicted.seconds.values()))}, {timed}"
    )
    yield "time: " + ", ".join(f"{part} {format_duration(seconds)}" for part, seconds in predicted.seconds.items())
    largest = max((job.bytes for job in division.jobs), default=0)
    free = "" if predicted.free is None else f"; {format_bytes(predicted.free)} free"
    yield f"memory: {format_bytes(predicted.memory)} at the peak, up to {format_bytes(largest)} per worker{free}"
    if division.waves:
        yield f"memory: {division.waves}"
    disk = ", ".join(f"{format_bytes(count)} of {what}" for what, count in predicted.disk.items())
    yield f"disk: {disk}; in {out}"


def forecast(plan: StudyPlan, progress: StudyProgress, division: JobPlan, seconds: float = SECONDS) -> Forecast:
    """Time one job of each shape in `division` and simulate all of them.

    Args:
        seconds: how long each is timed.
    """
    jobs, recipe = division.jobs, plan.recipe
    free = memory_use.free_memory(plan.device, division.workers)
    division = replace(division, workers=min(division.workers, len(jobs)))
    costs: dict[TrainingJob, simulation.JobCost] = {}
    report = _REPORT + _PER_NETWORK * len(plan.cells())
    with _find_images(plan) as (store, image_seconds, image_bytes):
        if jobs:
            study = make_study(plan, dict.fromkeys(TASKS, ""))
            times = time_jobs(study, jobs, store.folder, division.workers, seconds)
            costs = {job: simulation.job_cost(recipe, times, job, progress.steps) for job in jobs}
            bases, copies = simulation.simulate(jobs, costs, division.workers, times.alone, progress.ended)
            took = {
                "starting": 2 * times.start,  # this process and, beside each other, the workers
                "images": image_seconds,
                "bases": bases["training"],
                "copies": copies["training"],
                "validation": bases["validation"] + copies["validation"],
                "building and writing networks": sum(
                    part[what] for part in (bases, copies) for what in ("building", "saving")
                ),
                "report": times.start * report,
            }
        else:
            start = time.process_time()  # this process has done little but import what reports import
            took = {"starting": start, "report": start * report}
    # Jobs that end before the first checkpoint write none, and the checkpoints of a job go when it ends.
    long = sorted(job.checkpoint_bytes for job in costs if sum(costs[job].values()) > simulation.CHECKPOINT_SECONDS)
    network = 4 * recipe.network.weight_count(recipe.outputs_for("A", plan.classes))
    return Forecast(
        took,
        division,
        free,
        {
            "weights": network * sum(len(job.cells) for job in jobs),
            "checkpoints while training": sum(long[-division.workers :]),
            "prepared images": image_bytes,
        },
    )


def _unfinished(plan: StudyPlan, progress: StudyProgress) -> list[Cell]:
    return [cell for cell in plan.cells() if cell not in progress.ended]


def read_progress(plan: StudyPlan, out: Path) -> StudyProgress:
    """Return how far the study in `out` is, by its records, weights and checkpoints; the folder may be empty."""
    if not paths.records_file(out).is_file():
        return StudyProgress(frozenset(), {})
    states = {(r.seed, r.name): r.state for r in records.read_results(out).results}
    ended, steps = set(), {}
    for cell in plan.cells():
        state = states.get((cell.seed, cell.name))
        if state in ("diverged", "skipped") or (state in ("done", "stuck") and paths.weights_file(out, cell).is_file()):
            ended.add(cell)
        elif (step := checkpoint_step(out, cell)) is not None:
            steps[cell] = step
    return StudyProgress(frozenset(ended), steps)


@contextmanager
def _find_images(plan: StudyPlan) -> Iterator[tuple[Store, float, int]]:
    """Find the study's images where they are prepared; else prepare a few, which are removed again.

    Yields:
        A store of all images or of a few, of task B where the tasks are two data sets, to time training with; the
        seconds until all are prepared and their means known; the bytes that will be written.
    """
    seconds, written = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="fasttransfer-") as scratch:
        for task in plan.data_sets:
            found = _find_store(plan, plan.sources[task])
            store, more, bytes_ = (found, 0.0, 0) if found else _prepare_sample(plan, task, Path(scratch) / task)
            tasks = TASKS if len(plan.data_sets) == 1 else (task,)
            seconds, written = seconds + more + _mean_seconds(plan, store, tasks), written + bytes_
        yield store, seconds, written


def _mean_seconds(plan: StudyPlan, store: Store, tasks: Sequence[str]) -> float:
    """Return the seconds until the mean images of `tasks` are known."""
    if plan.recipe.network.channel_mean is not None:
        return 0.0
    begun = time.perf_counter()
    some = select_task_images(store, store.train, store.classes, max(1, 2 * _SAMPLE // len(store.classes)))
    mean_images.compute_mean_image(some)
    per_image = (time.perf_counter() - begun) / len(some)
    return per_image * sum(
        plan.train[task]
        for task in tasks
        if not mean_images.has_mean_image(store, plan.classes[task], plan.choices.per_class, cache_folder())
    )


def _find_store(plan: StudyPlan, source: TaskSource) -> Store | None:
    """Return the store of all images of a source where it is prepared."""
    side, cache, listing = plan.recipe.network.store, cache_folder(), source.images.listing
    bad = plan.choices.bad_images
    if source.images.store is not None:
        return source.images.store
    if listing is None:
        folder = prepare.builtin_folder(size=side, cache=cache, train=BUILTIN_TRAIN, val=BUILTIN_VAL)
        if not folder.exists():
            return None
        listing, bad = list_images(folder), "fail"
    done = prepare.find_finished(listing, size=side, cache=cache, kind=source.kind, bad_images=bad)
    with suppress(InputError):  # a damaged store is prepared again
        return Store.open(done) if done else None
    return None


def _prepare_sample(plan: StudyPlan, task: str, scratch: Path) -> tuple[Store, float, int]:
    """Return a store of some of a task's images, and the seconds and bytes that all of its source will take."""
    side, seconds, source = plan.recipe.network.store, 0.0, plan.sources[task]
    # All of a source is prepared, whatever the study uses of it.
    total = sum(map(sum, source.images.per_class.values()))
    written = expected_bytes(source.kind, total, side)
    listing, cache, free = source.images.listing, cache_folder(), choose_feed.free_disk(cache_folder())
    require_writable(cache)
    is_begun = listing is not None and source.kind in prepare.find_started(
        listing, size=side, cache=cache, bad_images=plan.choices.bad_images
    )
    if written > free and not is_begun:  # of one that was interrupted, `prepare` knows how much is there
        raise InputError(
            f"{cache}: the store takes {format_bytes(written)}, the disk has {format_bytes(free)} free: free space or "
            "choose another folder"
        )
    if listing is None:
        from fasttransfer.pipelines import synthetic  # here, for it imports the whole renderer

        begun = time.perf_counter()
        synthetic.render(scratch / "images", train=1, val=1, size=side)
        listing = list_images(scratch / "images")
        share = total / (len(listing.train) + len(listing.val))
        if not prepare.builtin_folder(size=side, cache=cache, train=BUILTIN_TRAIN, val=BUILTIN_VAL).exists():
            seconds += (time.perf_counter() - begun) * share / machine.cores()
            files = (scratch / "images").glob("*/*/*")
            written += int(share * sum(file.stat().st_size for file in files))
    took = {}
    for count in (_FEW, _SAMPLE):
        some = _thin_out(listing, count)
        begun = time.perf_counter()
        store = prepare.prepare_into(
            some, scratch / str(count), size=side, kind=source.kind, bad_images="skip", log=lambda text: None
        )
        took[len(some.train) + len(some.val)] = time.perf_counter() - begun
    (fewer, least), (more, most) = min(took.items()), max(took.items())
    per_image = max(0.0, most - least) / (more - fewer) if more > fewer else most / more
    return store, seconds + least + per_image * (total - fewer), written


def _thin_out(listing: Listing, count: int) -> Listing:
    """Return about `count` images from all over a listing, one of each part at least."""

    def thin(images: tuple[ImageFile, ...]) -> tuple[ImageFile, ...]:
        return images[:: max(1, -(-2 * len(images) // count))]

    return replace(listing, train=thin(listing.train), val=thin(listing.val))
