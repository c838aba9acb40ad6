"""What a study will take, before any of it is trained: its networks, time, memory and disk."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder
from fasttransfer.core.progress import format_bytes, format_duration
from fasttransfer.core.tables import plain_table
from fasttransfer.features import worth_keeping
from fasttransfer.pipelines import mean_images, prepare
from fasttransfer.pipelines.layouts import ImageFile, Listing, list_images
from fasttransfer.pipelines.store import Store, expected_bytes
from fasttransfer.pipelines.streams import select_task_images
from fasttransfer.study import paths, records
from fasttransfer.study.cells import TASKS, Cell
from fasttransfer.study.configuration import Choices, Feeding
from fasttransfer.study.images import BUILTIN_TRAIN, BUILTIN_VAL
from fasttransfer.study.paths import weights_file
from fasttransfer.training import cost, grid, memory_use, simulation, study_plan
from fasttransfer.training.checkpoint import checkpoint_step
from fasttransfer.training.planning import JobPlan, TrainingJob
from fasttransfer.training.step_times import SECONDS, StepTimes, TimingRequest, time_steps
from fasttransfer.training.study_plan import StudyPlan, describe_feed, make_plan

# Of the seconds that a process takes to start, which grow with a machine's load as they do: the report's imports and
# figures, and each network in it. From one report of 72 networks, 5.4 s.
_REPORT, _REPORTED = 1.2, 0.004
_CHECKPOINT_SECONDS = 30.0  # from the start of a job to its first checkpoint, as `grid.run` has it
_SAMPLE = 192  # images that are prepared to see how long one takes
_SMALL = 16  # the same for the least there is to do


@dataclass(frozen=True)
class Forecast:
    """What is left of a study will take.

    Attributes:
        seconds: part -> wall seconds, in the order in which they begin.
        division: what is trained together.
        driver: bytes of the process that the user starts; the workers' are `division.bytes`.
        free: bytes of memory that workers may have; None where nobody knows.
        disk: what -> bytes that will be written; checkpoints go again.
    """

    seconds: Mapping[str, float]
    division: JobPlan
    driver: int
    free: int | None
    disk: Mapping[str, int]

    @property
    def memory(self) -> int:
        """Bytes of all processes at their peak."""
        return self.driver + self.division.bytes


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is: the steps behind each cell that has begun or ended."""

    ended: frozenset[Cell]
    steps: Mapping[Cell, int]


def dry_run(
    choices: Choices,
    out: Path | None = None,
    *,
    feeding: Feeding | None = None,
    console: Console | None = None,
) -> None:
    """Prints the networks, what depends on what, and the time, memory and disk that what is left of them will take.

    Writes nothing but temporary files, of a few images and one network. Takes about as long as it takes to start the
    workers twice, and a few seconds.

    Raises:
        InputError: as `run`, as far as it can be known without decoding images.
    """
    console = console or Console()
    plan = make_plan(choices, feeding)
    out = out or plan.out
    plan = grid.resume_plan(plan, feeding or Feeding(), out)
    done = read_progress(plan, out)
    division = study_plan.plan_study_jobs(plan, _left(plan, done))
    console.print(_networks(plan))
    for task in TASKS:
        console.print(
            Text(
                f"task {task}: {len(plan.classes[task])} classes, {plan.train[task]:,} training and {plan.val[task]:,} "
                "validation images"
            )
        )
    for line in _told(plan, out, done, forecast(plan, done, division)):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(describe_feed(plan, plan.images.where, plan.device)), soft_wrap=True)
    if choices.views is not None:
        print_features(plan, plan.cells(), (feeding or Feeding()).features, console)


def print_features(plan: StudyPlan, cells: Sequence[Cell], asked: str, console: Console) -> None:
    """What of the frozen cells' features is kept, each source's over each target's images."""
    views, cuts = plan.choices.views, worth_keeping.cuts_read(cell.n for cell in cells if cell.frozen)
    if asked == "live" or not views or not cuts:
        console.print(Text(f"views: {views}; frozen features run live"))
        return
    records = max(views * plan.train[task] + plan.val[task] for task in TASKS)
    sources = {(cell.source, cell.target, cell.seed) for cell in cells if cell.frozen}
    try:
        rows = worth_keeping.forecast_cuts(
            plan.recipe, records, cuts, device=plan.device, precision=plan.precision, threads=plan.threads
        )
    except InputError as error:
        console.print(Text(f"views: {views}; frozen features run live: {error}"), soft_wrap=True)
        return
    console.print(Text(f"views: {views}; features of each of {len(sources)} frozen sources, times an image and view:"))
    console.print(rows)
    if asked == "cache":
        console.print(Text("--features cache: all are kept, whatever reading takes"))


def _networks(plan: StudyPlan) -> Table:
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


def _told(plan: StudyPlan, out: Path, begun: StudyProgress, found: Forecast) -> Iterator[str]:
    """The forecast in lines."""
    cells, left, division = plan.cells(), _left(plan, begun), found.division
    networks = f"{len(cells)} networks" if len(left) == len(cells) else f"{len(left)} of {len(cells)} networks are left"
    timed = "from steps timed now" if left else "all are trained"
    if plan.device == "cuda":
        timed += " (on GPUs this estimate has not been held against a whole study)"
    yield (
        f"{networks}, recipe {plan.recipe.name}, {plan.precision} on {plan.device}, {division.workers} at a time: "
        f"about {format_duration(sum(found.seconds.values()))}, {timed}"
    )
    yield "time: " + ", ".join(f"{part} {format_duration(seconds)}" for part, seconds in found.seconds.items())
    each = max((job.bytes for job in division.jobs), default=0)
    free = "" if found.free is None else f"; {format_bytes(found.free)} free"
    yield f"memory: {format_bytes(found.memory)} at the peak, up to {format_bytes(each)} a worker{free}"
    if division.waves:
        yield f"memory: {division.waves}"
    yield "disk: " + ", ".join(f"{format_bytes(count)} of {what}" for what, count in found.disk.items()) + f"; in {out}"


def forecast(plan: StudyPlan, begun: StudyProgress, division: JobPlan, seconds: float = SECONDS) -> Forecast:
    """Times steps of what `division` trains and simulates it.

    Args:
        seconds: how long steps are timed.
    """
    left, recipe = _left(plan, begun), plan.recipe
    parameters = cost.weight_count(recipe.geometry, recipe.outputs_for("A", plan.classes))
    free = memory_use.free_memory(plan.device, division.workers)
    costs: dict[TrainingJob, simulation.Spent] = {}
    with _prepared(plan) as prepared:
        if left:
            rates = time_steps(_sizes(plan, left, prepared.store.folder), division.workers, seconds)
            costs = {job: simulation.spent(recipe, rates, job, begun.steps) for job in division.jobs}
            took = _seconds(plan, begun, division, rates, costs, prepared.seconds)
        else:
            started = _import_seconds()
            took = {"starting": started, "report": _report(started, len(plan.cells()))}
    # Jobs that end before the first checkpoint write none, and those of a job go when it ends.
    kept = sorted(_checkpoint(job) for job in costs if sum(costs[job].values()) > _CHECKPOINT_SECONDS)
    workers = min(division.workers, len(division.jobs))
    return Forecast(
        took,
        replace(division, workers=workers),
        memory_use.OWN,
        free,
        {
            "weights": len(left) * 4 * parameters,
            "checkpoints while training": sum(kept[-division.workers :]),
            "prepared images": prepared.bytes,
        },
    )


def _seconds(
    plan: StudyPlan,
    begun: StudyProgress,
    division: JobPlan,
    rates: StepTimes,
    costs: Mapping[TrainingJob, simulation.Spent],
    preparing: float,
) -> dict[str, float]:
    """Part -> wall seconds."""
    bases, copies = simulation.simulate(division.jobs, costs, division.workers, rates.alone, set(begun.ended))
    named = (("b", bases), ("c", copies))
    of = {name: {what: part.get(what, 0.0) for what in simulation.PARTS} for name, part in named}
    rest = sum(of[name][what] for name in of for what in ("building", "saving"))
    return {
        "starting": 2 * rates.starting,  # this process and, beside each other, the workers
        "images": preparing,
        "bases": of["b"]["training"],
        "copies": of["c"]["training"],
        "validation": of["b"]["validation"] + of["c"]["validation"],
        "building and writing networks": rest,
        "report": _report(rates.starting, len(plan.cells())),
    }


def _report(starting: float, networks: int) -> float:
    return starting * (_REPORT + _REPORTED * networks)


def _import_seconds() -> float:
    """Since this process began: it has done little but import what workers import."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return time.process_time()
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


# -- how far it is --------------------------------------------------------------------------------------------------


def _left(plan: StudyPlan, begun: StudyProgress) -> list[Cell]:
    return [cell for cell in plan.cells() if cell not in begun.ended]


def read_progress(plan: StudyPlan, out: Path) -> StudyProgress:
    """What the study in `out` has behind it, from its records, weights and checkpoints; nothing where it is empty."""
    if not paths.records_file(out).is_file():
        return StudyProgress(frozenset(), {})
    states = {(r.seed, r.name): r.state for r in records.read_results(out).results}
    ended, steps = set(), {}
    for cell in plan.cells():
        state = states.get((cell.seed, cell.name))
        if state in ("diverged", "skipped") or (state in ("done", "stuck") and weights_file(out, cell).is_file()):
            ended.add(cell)
            continue
        if (step := checkpoint_step(out, cell)) is not None:
            steps[cell] = step
    return StudyProgress(frozenset(ended), steps)


# -- images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreparedImages:
    """Images to time a feed with, and what is left to do until the study's are all there.

    Attributes:
        store: of all images, or of a few.
        seconds: until all are prepared and their means known.
        bytes: that will be written.
    """

    store: Store
    seconds: float
    bytes: int


def _there(plan: StudyPlan) -> Store | None:
    """The store of all the study's images, where there is one."""
    side, cache, listing = plan.recipe.geometry.store, cache_folder(), plan.images.listing
    bad = plan.choices.bad_images
    if plan.images.store is not None:
        return plan.images.store
    if listing is None:
        folder = prepare.builtin_folder(size=side, cache=cache, train=BUILTIN_TRAIN, val=BUILTIN_VAL)
        if not folder.exists():
            return None
        listing, bad = list_images(folder), "fail"
    done = prepare.find_finished(listing, size=side, cache=cache, kind=plan.kind, bad_images=bad)
    with suppress(InputError):  # a damaged one is made again
        return Store.open(done) if done else None
    return None


@contextmanager
def _prepared(plan: StudyPlan) -> Iterator[PreparedImages]:
    """The study's images as far as they are there: where they are not, a few are prepared and removed again."""
    store = _there(plan)
    unknown = list(TASKS)
    if store is not None:
        chosen = plan.choices.per_class
        unknown = [t for t in TASKS if not mean_images.has_mean_image(store, plan.classes[t], chosen, cache_folder())]
    with tempfile.TemporaryDirectory(prefix="fasttransfer-") as scratch:
        found = PreparedImages(store, 0.0, 0) if store is not None else _sample(plan, Path(scratch))
        begun = time.perf_counter()
        some = select_task_images(
            found.store, found.store.train, found.store.classes, max(1, 2 * _SAMPLE // len(found.store.classes))
        )
        mean_images.compute_mean_image(some)
        each = (time.perf_counter() - begun) / len(some)
        yield replace(found, seconds=found.seconds + each * sum(plan.train[task] for task in unknown))


def _sample(plan: StudyPlan, scratch: Path) -> PreparedImages:
    """A store of some of the source's images, and what all of them will take."""
    side, seconds = plan.recipe.geometry.store, 0.0
    # All of a source is prepared, whatever the study uses of it.
    total = sum(map(sum, plan.images.per_class.values()))
    written = expected_bytes(plan.kind, total, side)
    listing = plan.images.listing
    if listing is None:
        from fasttransfer.pipelines import synthetic  # here, for it brings the whole renderer along

        begun = time.perf_counter()
        synthetic.render(scratch / "images", train=1, val=1, size=side)
        listing = list_images(scratch / "images")
        share = total / (len(listing.train) + len(listing.val))
        if not prepare.builtin_folder(size=side, cache=cache_folder(), train=BUILTIN_TRAIN, val=BUILTIN_VAL).exists():
            seconds += (time.perf_counter() - begun) * share / machine.cores()
            files = (scratch / "images").glob("*/*/*")
            written += int(share * sum(file.stat().st_size for file in files))
    took = {}
    for count in (_SMALL, _SAMPLE):
        some = _spread(listing, count)
        begun = time.perf_counter()
        store = prepare.prepare_into(
            some, scratch / str(count), size=side, kind=plan.kind, bad_images="skip", log=lambda text: None
        )
        took[len(some.train) + len(some.val)] = time.perf_counter() - begun
    (fewer, least), (more, most) = min(took.items()), max(took.items())
    each = max(0.0, most - least) / (more - fewer) if more > fewer else most / more
    return PreparedImages(store, seconds + least + each * (total - fewer), written)


def _spread(listing: Listing, count: int) -> Listing:
    """About `count` images from all over a listing, one of each part at least."""

    def some(images: tuple[ImageFile, ...]) -> tuple[ImageFile, ...]:
        return images[:: max(1, -(-2 * len(images) // count))]

    return replace(listing, train=some(listing.train), val=some(listing.val))


# -- sizes ----------------------------------------------------------------------------------------------------------


def _sizes(plan: StudyPlan, left: Sequence[Cell], store: Path) -> TimingRequest:
    """What is to be timed for the cells that are left."""
    outputs = max(plan.recipe.outputs_for(task, plan.classes) for task in TASKS)
    starts = tuple(sorted({cell.first_trained for cell in left}))
    tasks = max((tuple(sorted({c.mean_of for c in left if c.target == task and c.n})) for task in TASKS), key=len) or (
        left[0].mean_of,
    )
    return TimingRequest(plan.recipe, outputs, starts, tasks, store, plan.precision, plan.device, plan.threads)


def _checkpoint(job: TrainingJob) -> int:
    """Bytes of the checkpoints of a job: weights and velocities of what it trains."""
    shapes = job.terms.geometry.weight_shapes(job.terms.outputs)
    parameters = [math.prod(shape) + shape[0] for shape in shapes]
    return 8 * sum(sum(parameters[cell.first_trained :]) for cell in job.cells)
