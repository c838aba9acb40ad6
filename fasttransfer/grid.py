"""The transfer grid: bases, then the cells that copy from them; what is done already stays done.

`settle` turns what was asked for into a study, checking all that can be checked before anything is written; `run`
trains it in its folder, or goes on where an earlier run stopped.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xxhash
from rich.console import Console
from rich.text import Text

from fasttransfer import cost, footprint, info, machine, pictures, records, splits, tracking
from fasttransfer.assembly import Setting, mean_path
from fasttransfer.cells import LAYERS, TASKS, Cell, study_cells
from fasttransfer.cohort import Advanced, Checked, Ended, Message, Noted, Started, found_on_disk
from fasttransfer.engine import Again, Engine, need_engine, open_crew, run_jobs
from fasttransfer.errors import InputError
from fasttransfer.features.views import UNLIMITED
from fasttransfer.files import cache_folder, disk_trouble, locked, make_folder, replace_file, sweep
from fasttransfer.jobs import Division, plan_jobs
from fasttransfer.pictures import BUILTIN_CLASSES, BUILTIN_LAYERS, BUILTIN_SEEDS, BUILTIN_TRAIN, BUILTIN_VAL, Pictures
from fasttransfer.pipelines import feeds, prepare
from fasttransfer.pipelines.dali import has_dali, need_dali
from fasttransfer.pipelines.feed import task_pictures
from fasttransfer.pipelines.means import task_mean
from fasttransfer.pipelines.store import Kind, Store, expected_bytes
from fasttransfer.progress import Display, duration
from fasttransfer.records import Evaluation, Records
from fasttransfer.report import table, write_report
from fasttransfer.study import BUILTIN, VERSION, Choices, Feeding, Recipe, Study, recipes_for

_CLASSES_SEED = 0  # --classes chooses the same classes whatever the seeds of the networks are
_STUDY = "study.toml"
_FOLDERS = ("weights", "checkpoints", "means")

Trains = Callable[..., bool]  # jobs of a setting, as `fasttransfer.engine.run_jobs` with its crew


@dataclass(frozen=True)
class Plan:
    """A study as far as it can be known without decoding pictures.

    `classes` are those of each task in label order; `train`, `val` count pictures a task. `kind` is that of the store,
    which a source has yet to become, `why` what it was chosen for.
    """

    choices: Choices
    layers: tuple[int, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    pictures: Pictures
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
        return Path("runs") / f"{self.pictures.name}-{split.replace(':', '-')}"

    def cells(self) -> tuple[Cell, ...]:
        """Every network of the study."""
        chosen = self.choices
        return study_cells(chosen.targets, chosen.treatments, self.layers, self.seeds)


def settle(choices: Choices, feeding: Feeding | None = None) -> Plan:
    """Checks what was asked for and decides what was left open; reads the list of pictures, decodes none.

    Raises:
        InputError: bad pictures, split, recipe, device, feed, or a task without enough classes.
    """
    device = machine.device_for(choices.device)
    found = pictures.find(choices.data)
    recipe = choices.settled_recipe(found.recipe)
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
            raise InputError(f"{choices.data}: task {task} has no validation pictures: add some under val/")
    precision = machine.precision_for(choices.precision, device, recipe.geometry)
    return Plan(
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
        machine.threads_for(device),
    )


def divide(plan: Plan, cells: Sequence[Cell], workers: int | None = None) -> Division:
    """`cells` cut into jobs for the workers of this machine, with the memory that is free now.

    Args:
        workers: how many there are on a cluster, whose machines are taken to have as much memory a worker.

    Raises:
        InputError: a single network does not fit into it.
    """
    here = machine.workers_for(plan.device, plan.threads)
    workers = workers or here
    resident = _stored(plan) if feed_of(plan).resident else 0
    free = footprint.free_memory(plan.device, here, resident)
    free = None if free is None else free * workers // here
    return plan_jobs(plan.recipe, cells, plan.classes, plan.train, plan.val, workers, plan.precision, free)


def _kind(found: Pictures, recipe: Recipe, choices: Choices, feeding: Feeding) -> tuple[Kind, str]:
    """The kind of store that a study reads, and why."""
    side = recipe.geometry.store
    if found.store is not None:
        if found.store.size != side:
            fitting = recipes_for(found.store.size)
            other = f" or choose --recipe {' or '.join(fitting)}" if fitting else ""
            held = found.store.size
            raise InputError(
                f"{choices.data} holds {held} x {held} pictures, recipe {recipe.name} needs {side}: "
                f"prepare it again with --size {side}{other}"
            )
        feeds.check(found.store, feeding.feed)
        return found.store.kind, "as it is"
    if feeding.feed is not None:
        return feeds.KIND_OF[feeding.feed], f"for --feed {feeding.feed}"
    if found.listing is None:
        return "raw", "they are few"
    have = prepare.begun(found.listing, size=side, cache=cache_folder(), bad_pictures=choices.bad_pictures)
    count = len(found.listing.train) + len(found.listing.val)
    return feeds.choose_kind(count, side, feeds.free_disk(cache_folder()), have, dali=has_dali())


# -- running --------------------------------------------------------------------------------------------------------


def run(
    choices: Choices,
    out: Path | None = None,
    *,
    feeding: Feeding | None = None,
    console: Console | None = None,
    checkpoint_seconds: float = 30.0,
    tensorboard: bool = False,
    wanted: Callable[[Cell], bool] = lambda _: True,
    together: Trains | None = None,
) -> bool:
    """Trains the study that `choices` come to in folder `out`, or goes on with it; writes the report.

    Running the same study again resumes it, or does nothing when it is done. With `tensorboard` validation checks are
    written as event files as well.

    Args:
        wanted: which networks to train now; what they copy from is among them or done.
        together: what trains jobs instead of workers, see `fasttransfer.distributed`.

    Returns:
        False when it was interrupted; everything done so far is on disk.

    Raises:
        InputError: bad input; another study is in `out`; the disk is full.
    """
    console, feeding = console or Console(), feeding or Feeding()
    if tensorboard:
        tracking.need_tensorboard()
    need_engine(feeding.engine)
    plan = settle(choices, feeding)
    out = out or plan.out
    with disk_trouble(out):
        made = not out.exists()
    if feeding.engine == "local" and not (out / _STUDY).exists():
        divide(plan, plan.cells())  # too little memory is said before anything is written
    make_folder(out)
    try:
        with _alone(out):
            started = time.monotonic()
            for name in (".", *_FOLDERS):
                sweep(out / name)
            there = _study_in(out)
            if there:  # before pictures are prepared for nothing
                _must_be_same(there, _study(plan, there.pictures, there), out)
                plan = _as_begun(plan, feeding, out)
            store = _store(plan, console)
            store.need_both_parts([name for task in TASKS for name in plan.classes[task]])
            study = _study(plan, store.digest, there)
            if there:
                _must_be_same(there, study, out)
            else:
                begin(plan, store, out)
            setting = Setting(
                study, out, store.folder, plan.classes, checkpoint_seconds, feeding.hw_share, feeding.features
            )
            with tracking.tensorboard(out) if tensorboard else nullcontext(_unheard) as listener:
                finished = _train(setting, plan, store, console, listener, wanted, feeding.engine, together)
            if finished:
                which = "complete" if all(map(wanted, study.cells())) else "what was asked for is trained"
                console.print(Text(f"{out}: {which} after {duration(time.monotonic() - started)}"), soft_wrap=True)
    except InputError:
        if made and not (out / _STUDY).exists():  # nothing half-written
            shutil.rmtree(out, ignore_errors=True)
        raise
    return finished


def begin(plan: Plan, store: Store, out: Path) -> Setting:
    """A new study in folder `out`: what `plan` comes to on the pictures in `store`. Nothing is trained yet."""
    study = _study(plan, store.digest, None)
    for name in _FOLDERS:
        make_folder(out / name)
    study.write(out / _STUDY)
    return Setting(study, out, store.folder, plan.classes)


def begun(plan: Plan, feeding: Feeding, out: Path) -> Plan:
    """`plan`, with what the study in `out` has settled where one is begun there.

    Raises:
        InputError: another study is there.
    """
    if not out.is_dir() or not (there := _study_in(out)):
        return plan
    study = _study(plan, there.pictures, there)
    _must_be_same(there, study, out)
    plan = _as_begun(plan, feeding, out)
    return replace(plan, device=study.device, precision=study.precision, threads=study.threads)


def _as_begun(plan: Plan, feeding: Feeding, out: Path) -> Plan:
    """`plan` with the kind of store that the study in `out` was begun with: a source may have become either."""
    if plan.pictures.store is not None or not (out / "study.db").is_file():
        return plan
    kind: Kind = records.read(out).facts.get("store", {"kind": "raw"})["kind"]
    if feeding.feed is not None and feeds.KIND_OF[feeding.feed] != kind:
        raise InputError(
            f"{out}: this study reads a {kind} store, --feed {feeding.feed} reads another kind: drop --feed or choose "
            "another --out"
        )
    return replace(plan, kind=kind, why="as the study began")


def _unheard(cell: Cell, evaluations: Sequence[Evaluation]) -> None:
    """Where nobody listens."""


def _store(plan: Plan, console: Console) -> Store:
    """The store of the study's pictures, prepared unless that is done."""

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    if plan.pictures.store is not None:
        return plan.pictures.store
    if plan.kind == "jpeg":
        need_dali()  # before pictures are prepared for nothing
    side = plan.recipe.geometry.store
    if plan.pictures.listing is None:
        return builtin_store(side, say, plan.kind)
    return prepare.prepare(
        plan.pictures.listing,
        size=side,
        cache=cache_folder(),
        kind=plan.kind,
        bad_pictures=plan.choices.bad_pictures,
        device=plan.device,
        say=say,
    )


def builtin_store(side: int, say: Callable[[str], None], kind: Kind = "raw") -> Store:
    """The built-in pictures at `side` x `side`, prepared."""
    return prepare.builtin(size=side, cache=cache_folder(), train=BUILTIN_TRAIN, val=BUILTIN_VAL, kind=kind, say=say)


def _study_in(out: Path) -> Study | None:
    """The study that is in folder `out`; None where it is empty."""
    path = out / _STUDY
    if path.exists():
        if (study := Study.read(path)).version < VERSION:
            raise InputError(
                f"{out}: this study was begun by an earlier fasttransfer, whose studies have no base+: report, advise "
                "and compare still read it; to train, choose another --out"
            )
        return study
    strangers = [p.name for p in out.iterdir() if p.name not in (".lock", *_FOLDERS)]
    if strangers:
        raise InputError(f"{out}: holds {strangers[0]} but no study: choose another --out or empty it")
    return None


def _must_be_same(there: Study, study: Study, out: Path) -> None:
    if differences := there.differences(study):
        raise InputError(
            f"{out}: another study is here ({'; '.join(differences)}): choose another --out or drop what differs"
        )


def _study(plan: Plan, pictures: str, there: Study | None) -> Study:
    """The study that `plan` comes to on pictures of this digest.

    What the machine decided because nobody asked (device, precision, threads) is taken from the study that is
    `there`, so that it can be resumed on another.
    """
    choices = plan.choices
    return Study(
        data=plan.pictures.where,
        pictures=pictures,
        split=choices.split,
        tasks=xxhash.xxh3_128_hexdigest(json.dumps(plan.classes).encode()),
        layers=plan.layers,
        treatments=choices.treatments,
        targets=choices.targets,
        seeds=plan.seeds,
        bad_pictures=store.manifest["bad_pictures"] if (store := plan.pictures.store) else choices.bad_pictures,
        precision=there.precision if there and not choices.precision else plan.precision,
        device=machine.device_for(there.device) if there and not choices.device else plan.device,
        threads=there.threads if there else plan.threads,
        recipe=plan.recipe,
        classes=choices.classes,
        per_class=choices.per_class,
        views=choices.views,
    )


def _train(
    setting: Setting,
    plan: Plan,
    store: Store,
    console: Console,
    listener: tracking.Listener,
    wanted: Callable[[Cell], bool],
    engine: Engine,
    together: Trains | None,
) -> bool:
    study, out = setting.study, setting.folder
    planned = study.cells()
    cells = [cell for cell in planned if wanted(cell)]
    with Records(out / "study.db") as book:
        book.plan(planned)
        train, val = _describe(book, plan, store, study, out)
        _recover(book, study, out, planned)
        ended = book.ended()
        left = [c for c in cells if (c.seed, c.name) not in ended]
        if left:
            write_means(setting, store)
            book.event(f"{'resumed' if len(left) < len(cells) else 'started'} with {len(left)} networks to train")
            console.print(Text(_opening(study, plan, cells, left, out)), soft_wrap=True)
            console.print(Text(feeding_line(plan, str(store.folder), study.device)), soft_wrap=True)
            begun = replace(plan, device=study.device, precision=study.precision, threads=study.threads)
            begun = replace(begun, train=train, val=val)
            with ExitStack() as stack:
                if together is not None:
                    division, trains = divide(begun, left, 1), together
                else:
                    crew = stack.enter_context(closing(open_crew(engine, setting)))
                    division, trains = divide(begun, left, crew.size), partial(run_jobs, crew)
                if division.waves:
                    console.print(Text(f"memory: {division.waves}"), soft_wrap=True)
                finished = _run_jobs(trains, setting, train, division, book, ended, console, listener)
            if not finished:
                book.event("interrupted")
                console.print(
                    Text(f"stopped; everything so far is in {out}. The same command goes on from here."),
                    soft_wrap=True,
                )
        else:
            all_of = f"all {len(cells)} networks" if len(cells) == len(planned) else ", ".join(c.label for c in cells)
            console.print(Text(f"{out}: {all_of} are trained, nothing to do"), soft_wrap=True)
            finished = True
    recorded = records.read(out)
    index = write_report(recorded, out)
    if finished and len(cells) == len(planned):
        console.print(table(recorded))
    elif finished:
        for result in recorded.results:
            if result.trained and any((c.name, c.seed) == (result.name, result.seed) for c in cells):
                console.print(Text(f"{result.name}.s{result.seed}: {100 * (result.last_top1 or 0):.1f} % top-1"))
    console.print(Text(f"report: {index}"), soft_wrap=True)
    return finished


def _run_jobs(
    trains: Trains,
    setting: Setting,
    train: Mapping[str, int],
    division: Division,
    book: Records,
    ended: dict[tuple[int, str], str],
    console: Console,
    listener: tracking.Listener,
) -> bool:
    with Display(console, sum(job.macs for job in division.jobs)) as display:

        def hear(message: Message | Again) -> None:
            if isinstance(message, Started):
                names = ", ".join(c.name for c in message.cells[:4])
                more = f" and {len(message.cells) - 4} more" if len(message.cells) > 4 else ""
                display.doing(f"training {names}{more}")
                # A resumed cohort's share is behind it.
                display.skip(_macs(setting, message.cells) * message.step)
            elif isinstance(message, Advanced):
                display.advance(message.macs)
            elif isinstance(message, Checked):
                book.checked((message.cell, e) for e in message.evaluations)
                listener(message.cell, message.evaluations)
            elif isinstance(message, Ended):
                book.finished(message.cell, message.state, message.steps, message.reason, message.correct)
                ended[message.cell.seed, message.cell.name] = message.state
                display.skip(_left(setting, train, message))  # what ended early leaves its budget
                if message.reason:
                    book.event(message.reason, message.cell.label)
                    display.note(f"{message.cell.name}: {message.reason}")
            elif isinstance(message, Again):
                book.event(message.text)
                display.note(message.text)
                display.advance(-message.macs)
                if message.begun:
                    display.skip(-_macs(setting, message.begun.cells) * message.begun.step)
            elif isinstance(message, Noted) and message.stays:
                book.event(message.text)
                display.note(message.text)
            elif isinstance(message, Noted):
                display.doing(message.text)
                display.advance(0.0)

        return trains(setting, division, hear, ended=lambda c: ended.get((c.seed, c.name)))


def _macs(setting: Setting, cells: Sequence[Cell]) -> float:
    recipe = setting.study.recipe
    outputs = recipe.outputs_for(cells[0].target, setting.classes)
    return recipe.batch * cost.cohort_macs(recipe.geometry, outputs, cells)


def _left(setting: Setting, train: Mapping[str, int], end: Ended) -> float:
    """Multiply-adds that training a cell on to the end would have taken, but for its prefix, which others may share.

    `train` counts the training pictures of each task.
    """
    recipe, task = setting.study.recipe, end.cell.target
    steps = recipe.steps_for(train[task]) - end.steps
    outputs = recipe.outputs_for(task, setting.classes)
    return steps * recipe.batch * cost.trained_macs(recipe.geometry, outputs, end.cell)


def _recover(book: Records, study: Study, out: Path, cells: Sequence[Cell]) -> None:
    """Brings records and weights on disk together: the weights of a cell decide whether it is done."""
    ended = book.ended()
    for cell in cells:
        state = ended.get((cell.seed, cell.name))
        if state in ("diverged", "skipped"):
            continue
        found = found_on_disk(study, out, cell)
        if found is None:
            if state is not None:
                book.event("its weights are missing or damaged: trained again", cell.label)
                book.reopen(cell)
        elif state is None:
            checked, end = found
            book.checked((cell, e) for e in checked.evaluations)
            book.finished(cell, end.state, end.steps, end.reason, end.correct)


def _describe(
    book: Records, plan: Plan, store: Store, study: Study, out: Path
) -> tuple[dict[str, int], dict[str, int]]:
    """Writes what the pictures are into the records; returns how many each task has to train and to validate on."""
    train, val = {}, {}
    for task, classes in plan.classes.items():
        train[task] = len(task_pictures(store, store.train, classes, study.per_class))
        val[task] = len(task_pictures(store, store.val, classes))
    words = {c: w for task in TASKS for c in plan.classes[task] if (w := store.words.get(c))}
    facts = {
        "command": _command(plan.choices, out),
        "classes": {task: list(classes) for task, classes in plan.classes.items()},
        "train_pictures": train,
        "val_pictures": val,
        "views": study.views or UNLIMITED,
        "synthetic": bool(store.manifest["synthetic"]),
        "store": {"kind": store.kind, "size": store.size, "source": store.manifest["source"]},
        "held_out": bool(store.manifest["held_out"]),
        "refused": len(store.manifest["refused"]),
        "words": words,
    }
    book.describe(facts, info.collect())
    return train, val


def _command(choices: Choices, out: Path) -> str:
    return shlex.join(["fasttransfer", *options(choices), "--out", str(out)])


def options(choices: Choices) -> list[str]:
    """The arguments of the command line that ask for `choices`: every option that is not at its default."""
    words = ["grid"]
    for option in fields(Choices):
        value = getattr(choices, option.name)
        if value != option.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{option.name.replace('_', '-')}", *map(str, values)]
    return words


def write_means(setting: Setting, store: Store) -> None:
    """The mean picture of each task's training pictures, in the study's folder: networks are useless without."""
    for task, classes in setting.classes.items():
        path = mean_path(setting.folder, task)
        if not path.exists():
            mean = task_mean(store, classes, setting.study.per_class, cache_folder())
            with replace_file(path) as file:
                np.save(file, mean, allow_pickle=False)


def _alone(out: Path) -> AbstractContextManager[None]:
    """Holds the folder: two runs at once would train the same networks twice."""

    def busy() -> None:
        raise InputError(f"{out}: another run is working here: wait for it, or choose another --out")

    return locked(out / ".lock", busy)


def _opening(study: Study, plan: Plan, cells: Sequence[Cell], left: Sequence[Cell], out: Path) -> str:
    networks = f"{len(left)} of {len(cells)} networks" if len(left) < len(cells) else f"{len(cells)} networks"
    tasks = "; ".join(f"{t}: {len(plan.classes[t])} classes, {plan.train[t]} pictures" for t in TASKS)
    recipe = study.recipe
    return (
        f"{networks} ({tasks}), recipe {recipe.name} ({recipe.geometry.name}, {study.precision} on {study.device}), "
        f"views: {study.views or UNLIMITED}, in {out}"
    )


def feeding_line(plan: Plan, where: str, device: str) -> str:
    """Which feed reads which pictures, and where they lie: as each worker decides for itself when it starts."""
    chosen = feed_of(replace(plan, device=device))
    return f"pictures: {where} as a {plan.kind} store ({plan.why}); feed: {chosen.about}"


def feed_of(plan: Plan) -> feeds.Chosen:
    """The feed that each worker will choose."""
    return feeds.choose_feed(
        plan.kind, _stored(plan), plan.device, feeds.free_memory(plan.kind, torch.device(plan.device))
    )


def _stored(plan: Plan) -> int:
    """Bytes of the larger task's pictures as they are stored."""
    side = plan.recipe.geometry.store
    return max(expected_bytes(plan.kind, plan.train[task] + plan.val[task], side) for task in TASKS)
