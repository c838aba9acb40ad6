"""The transfer grid: bases, then the cells that copy from them; what is done already stays done.

`run` trains a study in its folder, or goes on where an earlier run stopped.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from rich.console import Console
from rich.text import Text

from fasttransfer.core import devices
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import (
    cache_folder,
    disk_errors,
    hold_lock,
    make_folder,
    remove_temporary_files,
    replace_file,
)
from fasttransfer.core.progress import Display, format_duration
from fasttransfer.pipelines import choose_feed, prepare
from fasttransfer.pipelines.dali_feed import require_dali
from fasttransfer.pipelines.mean_images import load_mean_image
from fasttransfer.pipelines.store import Kind, Store
from fasttransfer.pipelines.streams import select_task_images
from fasttransfer.pipelines.views import UNLIMITED
from fasttransfer.study import environment, paths, records
from fasttransfer.study.cells import TASKS, Cell
from fasttransfer.study.configuration import VERSION, Choices, Feeding, Study
from fasttransfer.study.images import builtin_store
from fasttransfer.study.paths import mean_file
from fasttransfer.study.records import Evaluation, Records, StudyResults
from fasttransfer.training import cost, event_files
from fasttransfer.training.checkpoint import load_end
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.messages import Advanced, Checked, Ended, Message, Noted, Started
from fasttransfer.training.planning import JobPlan
from fasttransfer.training.study_plan import StudyPlan, command_words, describe_feed, make_plan, plan_study_jobs
from fasttransfer.training.workers import Engine, JobRetried, open_workers, require_engine, run_jobs

Show = Callable[[StudyResults, Sequence[Cell]], None]  # see `run`
Trains = Callable[..., bool]  # jobs of a setting, as `fasttransfer.training.workers.run_jobs` with its crew


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
    show: Show = lambda recorded, trained: None,
) -> bool:
    """Trains the study that `choices` come to in folder `out`, or goes on with it.

    Running the same study again resumes it, or does nothing when it is done. With `tensorboard` validation checks are
    written as event files as well.

    Args:
        wanted: which networks to train now; what they copy from is among them or done.
        together: what trains jobs instead of workers, see `fasttransfer.training.ddp`.
        show: called at the end, before the folder is released, with the records and the wanted cells, none of them
            where the run was interrupted: writes or prints what there is to see.

    Returns:
        False when it was interrupted; everything done so far is on disk.

    Raises:
        InputError: bad input; another study is in `out`; the disk is full.
    """
    console, feeding = console or Console(), feeding or Feeding()
    if tensorboard:
        event_files.require_tensorboard()
    require_engine(feeding.engine)
    plan = make_plan(choices, feeding)
    out = out or plan.out
    with disk_errors(out):
        made = not out.exists()
    if feeding.engine == "local" and not paths.study_file(out).exists():
        plan_study_jobs(plan, plan.cells())  # too little memory is said before anything is written
    make_folder(out)
    try:
        with _alone(out):
            started = time.monotonic()
            for name in (".", *paths.WORKING_FOLDERS):
                remove_temporary_files(out / name)
            there = _study_in(out)
            if there:  # before images are prepared for nothing
                _must_be_same(there, _study(plan, there.images, there), out)
                plan = _as_begun(plan, feeding, out)
            store = _store(plan, console)
            store.require_both_parts([name for task in TASKS for name in plan.classes[task]])
            study = _study(plan, store.digest, there)
            if there:
                _must_be_same(there, study, out)
            else:
                create_study(plan, store, out)
            setting = StudyContext(
                study, out, store.folder, plan.classes, checkpoint_seconds, feeding.hw_share, feeding.features
            )
            with event_files.write_events(out) if tensorboard else nullcontext(_unheard) as listener:
                finished = _train(setting, plan, store, console, listener, wanted, feeding.engine, together, show)
            if finished:
                which = "complete" if all(map(wanted, study.cells())) else "what was asked for is trained"
                console.print(
                    Text(f"{out}: {which} after {format_duration(time.monotonic() - started)}"), soft_wrap=True
                )
    except InputError:
        if made and not paths.study_file(out).exists():  # nothing half-written
            shutil.rmtree(out, ignore_errors=True)
        raise
    return finished


def create_study(plan: StudyPlan, store: Store, out: Path) -> StudyContext:
    """A new study in folder `out`: what `plan` comes to on the images in `store`. Nothing is trained yet."""
    study = _study(plan, store.digest, None)
    for name in paths.WORKING_FOLDERS:
        make_folder(out / name)
    study.write(paths.study_file(out))
    return StudyContext(study, out, store.folder, plan.classes)


def resume_plan(plan: StudyPlan, feeding: Feeding, out: Path) -> StudyPlan:
    """`plan`, with what the study in `out` has settled where one is begun there.

    Raises:
        InputError: another study is there.
    """
    if not out.is_dir() or not (there := _study_in(out)):
        return plan
    study = _study(plan, there.images, there)
    _must_be_same(there, study, out)
    plan = _as_begun(plan, feeding, out)
    return replace(plan, device=study.device, precision=study.precision, threads=study.threads)


def _as_begun(plan: StudyPlan, feeding: Feeding, out: Path) -> StudyPlan:
    """`plan` with the kind of store that the study in `out` was begun with: a source may have become either."""
    if plan.images.store is not None or not paths.records_file(out).is_file():
        return plan
    kind: Kind = records.read_results(out).facts.get("store", {"kind": "raw"})["kind"]
    if feeding.feed is not None and choose_feed.KIND_OF[feeding.feed] != kind:
        raise InputError(
            f"{out}: this study reads a {kind} store, --feed {feeding.feed} reads another kind: drop --feed or choose "
            "another --out"
        )
    return replace(plan, kind=kind, why="as the study began")


def _unheard(cell: Cell, evaluations: Sequence[Evaluation]) -> None:
    """Where nobody listens."""


def _store(plan: StudyPlan, console: Console) -> Store:
    """The store of the study's images, prepared unless that is done."""

    def log(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    if plan.images.store is not None:
        return plan.images.store
    if plan.kind == "jpeg":
        require_dali()  # before images are prepared for nothing
    side = plan.recipe.geometry.store
    if plan.images.listing is None:
        return builtin_store(side, log, plan.kind)
    return prepare.prepare(
        plan.images.listing,
        size=side,
        cache=cache_folder(),
        kind=plan.kind,
        bad_images=plan.choices.bad_images,
        device=plan.device,
        log=log,
    )


def _study_in(out: Path) -> Study | None:
    """The study that is in folder `out`; None where it is empty."""
    path = paths.study_file(out)
    if path.exists():
        if (study := Study.read(path)).version < VERSION:
            raise InputError(
                f"{out}: this study was begun by an earlier fasttransfer, whose studies have no base+: report, advise "
                "and compare still read it; to train, choose another --out"
            )
        return study
    strangers = [p.name for p in out.iterdir() if p.name not in (paths.lock_file(out).name, *paths.WORKING_FOLDERS)]
    if strangers:
        raise InputError(f"{out}: holds {strangers[0]} but no study: choose another --out or empty it")
    return None


def _must_be_same(there: Study, study: Study, out: Path) -> None:
    if differences := there.differences(study):
        raise InputError(
            f"{out}: another study is here ({'; '.join(differences)}): choose another --out or drop what differs"
        )


def _study(plan: StudyPlan, images: str, there: Study | None) -> Study:
    """The study that `plan` comes to on images of this digest.

    What the machine decided because nobody asked (device, precision, threads) is taken from the study that is
    `there`, so that it can be resumed on another.
    """
    choices = plan.choices
    return Study(
        data=plan.images.where,
        images=images,
        split=choices.split,
        tasks=xxhash.xxh3_128_hexdigest(json.dumps(plan.classes).encode()),
        layers=plan.layers,
        treatments=choices.treatments,
        targets=choices.targets,
        seeds=plan.seeds,
        bad_images=store.manifest["bad_pictures"] if (store := plan.images.store) else choices.bad_images,
        precision=there.precision if there and not choices.precision else plan.precision,
        device=devices.choose_device(there.device) if there and not choices.device else plan.device,
        threads=there.threads if there else plan.threads,
        recipe=plan.recipe,
        classes=choices.classes,
        per_class=choices.per_class,
        views=choices.views,
    )


def _train(
    setting: StudyContext,
    plan: StudyPlan,
    store: Store,
    console: Console,
    listener: event_files.Listener,
    wanted: Callable[[Cell], bool],
    engine: Engine,
    together: Trains | None,
    show: Show,
) -> bool:
    study, out = setting.study, setting.folder
    planned = study.cells()
    cells = [cell for cell in planned if wanted(cell)]
    with Records(paths.records_file(out)) as book:
        book.plan(planned)
        train, val = _describe(book, plan, store, study, out)
        _recover(book, study, out, planned)
        ended = book.read_ended()
        left = [c for c in cells if (c.seed, c.name) not in ended]
        if left:
            write_mean_images(setting, store)
            book.log_event(f"{'resumed' if len(left) < len(cells) else 'started'} with {len(left)} networks to train")
            console.print(Text(_opening(study, plan, cells, left, out)), soft_wrap=True)
            console.print(Text(describe_feed(plan, str(store.folder), study.device)), soft_wrap=True)
            begun = replace(plan, device=study.device, precision=study.precision, threads=study.threads)
            begun = replace(begun, train=train, val=val)
            with ExitStack() as stack:
                if together is not None:
                    division, trains = plan_study_jobs(begun, left, 1), together
                else:
                    crew = stack.enter_context(closing(open_workers(engine, setting)))
                    division, trains = plan_study_jobs(begun, left, crew.size), partial(run_jobs, crew)
                if division.waves:
                    console.print(Text(f"memory: {division.waves}"), soft_wrap=True)
                finished = _run_jobs(trains, setting, train, division, book, ended, console, listener)
            if not finished:
                book.log_event("interrupted")
                console.print(
                    Text(f"stopped; everything so far is in {out}. The same command goes on from here."),
                    soft_wrap=True,
                )
        else:
            all_of = f"all {len(cells)} networks" if len(cells) == len(planned) else ", ".join(c.label for c in cells)
            console.print(Text(f"{out}: {all_of} are trained, nothing to do"), soft_wrap=True)
            finished = True
    show(records.read_results(out), cells if finished else ())
    return finished


def _run_jobs(
    trains: Trains,
    setting: StudyContext,
    train: Mapping[str, int],
    division: JobPlan,
    book: Records,
    ended: dict[tuple[int, str], str],
    console: Console,
    listener: event_files.Listener,
) -> bool:
    with Display(console, sum(job.macs for job in division.jobs)) as display:

        def on_message(message: Message | JobRetried) -> None:
            if isinstance(message, Started):
                names = ", ".join(c.name for c in message.cells[:4])
                more = f" and {len(message.cells) - 4} more" if len(message.cells) > 4 else ""
                display.doing(f"training {names}{more}")
                # A resumed cohort's share is behind it.
                display.skip(_macs(setting, message.cells) * message.step)
            elif isinstance(message, Advanced):
                display.advance(message.macs)
            elif isinstance(message, Checked):
                book.record_checks((message.cell, e) for e in message.evaluations)
                listener(message.cell, message.evaluations)
            elif isinstance(message, Ended):
                book.end_cell(message.cell, message.state, message.steps, message.reason, message.correct)
                ended[message.cell.seed, message.cell.name] = message.state
                display.skip(_left(setting, train, message))  # what ended early leaves its budget
                if message.reason:
                    book.log_event(message.reason, message.cell.label)
                    display.note(f"{message.cell.name}: {message.reason}")
            elif isinstance(message, JobRetried):
                book.log_event(message.text)
                display.note(message.text)
                display.advance(-message.macs)
                if message.begun:
                    display.skip(-_macs(setting, message.begun.cells) * message.begun.step)
            elif isinstance(message, Noted) and message.stays:
                book.log_event(message.text)
                display.note(message.text)
            elif isinstance(message, Noted):
                display.doing(message.text)
                display.advance(0.0)

        return trains(setting, division, on_message, ended=lambda c: ended.get((c.seed, c.name)))


def _macs(setting: StudyContext, cells: Sequence[Cell]) -> float:
    recipe = setting.study.recipe
    outputs = recipe.outputs_for(cells[0].target, setting.classes)
    return recipe.batch * cost.cohort_macs(recipe.geometry, outputs, cells)


def _left(setting: StudyContext, train: Mapping[str, int], end: Ended) -> float:
    """Multiply-adds that training a cell on to the end would have taken, but for its prefix, which others may share.

    `train` counts the training images of each task.
    """
    recipe, task = setting.study.recipe, end.cell.target
    steps = recipe.steps_for(train[task]) - end.steps
    outputs = recipe.outputs_for(task, setting.classes)
    return steps * recipe.batch * cost.trained_macs(recipe.geometry, outputs, end.cell)


def _recover(book: Records, study: Study, out: Path, cells: Sequence[Cell]) -> None:
    """Brings records and weights on disk together: the weights of a cell decide whether it is done."""
    ended = book.read_ended()
    for cell in cells:
        state = ended.get((cell.seed, cell.name))
        if state in ("diverged", "skipped"):
            continue
        found = load_end(out, study, cell)
        if found is None:
            if state is not None:
                book.log_event("its weights are missing or damaged: trained again", cell.label)
                book.reopen(cell)
        elif state is None:
            checked, end = found
            book.record_checks((cell, e) for e in checked.evaluations)
            book.end_cell(cell, end.state, end.steps, end.reason, end.correct)


def _describe(
    book: Records, plan: StudyPlan, store: Store, study: Study, out: Path
) -> tuple[dict[str, int], dict[str, int]]:
    """Writes what the images are into the records; returns how many each task has to train and to validate on."""
    train, val = {}, {}
    for task, classes in plan.classes.items():
        train[task] = len(select_task_images(store, store.train, classes, study.per_class))
        val[task] = len(select_task_images(store, store.val, classes))
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
    book.describe(facts, environment.describe_environment())
    return train, val


def _command(choices: Choices, out: Path) -> str:
    return shlex.join(["fasttransfer", *command_words(choices), "--out", str(out)])


def write_mean_images(setting: StudyContext, store: Store) -> None:
    """The mean image of each task's training images, in the study's folder: networks are useless without."""
    for task, classes in setting.classes.items():
        path = mean_file(setting.folder, task)
        if not path.exists():
            mean = load_mean_image(store, classes, setting.study.per_class, cache_folder())
            with replace_file(path) as file:
                np.save(file, mean, allow_pickle=False)


def _alone(out: Path) -> AbstractContextManager[None]:
    """Holds the folder: two runs at once would train the same networks twice."""

    def busy() -> None:
        raise InputError(f"{out}: another run is working here: wait for it, or choose another --out")

    return hold_lock(paths.lock_file(out), busy)


def _opening(study: Study, plan: StudyPlan, cells: Sequence[Cell], left: Sequence[Cell], out: Path) -> str:
    networks = f"{len(left)} of {len(cells)} networks" if len(left) < len(cells) else f"{len(cells)} networks"
    tasks = "; ".join(f"{t}: {len(plan.classes[t])} classes, {plan.train[t]} images" for t in TASKS)
    recipe = study.recipe
    return (
        f"{networks} ({tasks}), recipe {recipe.name} ({recipe.geometry.name}, {study.precision} on {study.device}), "
        f"views: {study.views or UNLIMITED}, in {out}"
    )
