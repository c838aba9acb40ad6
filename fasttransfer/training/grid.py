"""The transfer grid: train bases, then the cells that copy from them; what is done already stays done.

`run` trains a study in its folder, or goes on where an earlier run stopped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from fasttransfer.core.console import make_console, print_line
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import access_errors, disk_errors, make_folder, remove_temporary_files
from fasttransfer.core.progress import Display, format_duration
from fasttransfer.pipelines.store import Store
from fasttransfer.pipelines.views import UNLIMITED
from fasttransfer.study import paths, records
from fasttransfer.study.cells import TASKS, Cell
from fasttransfer.study.configuration import Choices, Feeding
from fasttransfer.study.records import Records, StudyResults
from fasttransfer.training import cost, event_files, study_setup
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.messages import Advanced, Checked, Ended, Message, Noted, Started
from fasttransfer.training.planning import JobPlan
from fasttransfer.training.study_plan import StudyPlan, describe_feed, make_plan, plan_study_jobs, resume_plan
from fasttransfer.training.workers import Engine, open_workers, require_engine, run_jobs

Show = Callable[[StudyResults, Sequence[Cell]], None]  # see `run`
Train = Callable[..., bool]  # trains jobs, as `fasttransfer.training.workers.run_jobs` with its workers


def run(
    choices: Choices,
    out: Path | None = None,
    *,
    feeding: Feeding | None = None,
    console: Console | None = None,
    checkpoint_seconds: float = 30.0,
    tensorboard: bool = False,
    wanted: Callable[[Cell], bool] = lambda _: True,
    together: Train | None = None,
    show: Show = lambda results, trained: None,
) -> bool:
    """Train the study of `choices` in folder `out`, or go on with it.

    Running the same study again resumes it, or does nothing when it is done. With `tensorboard` validation checks are
    written as event files as well.

    Args:
        wanted: says of a network whether to train it now; what it copies from is trained now too, or done.
        together: trains jobs instead of workers, see `fasttransfer.training.ddp`.
        show: called with the records and the wanted cells once these have ended, before the folder is released: writes
            or prints the results. Not after an interruption: whoever sends a signal kills soon.

    Returns:
        False when it was interrupted; everything done so far is on disk.

    Raises:
        InputError: bad input; another study is in `out`; the disk is full.
    """
    console, feeding = console or make_console(), feeding or Feeding()
    log = partial(print_line, console)
    require_engine(feeding.engine)
    plan = make_plan(choices, feeding, log)
    out = out or plan.out
    if tensorboard:
        event_files.require_events(out)
    with disk_errors(out):
        new = [folder for folder in (out, *out.parents) if not folder.exists()]
    if feeding.engine == "local" and not paths.study_file(out).exists():
        plan_study_jobs(plan, plan.cells())  # refuses what does not fit into memory before anything is written
    make_folder(out)
    try:
        with access_errors(), study_setup.lock_folder(out):
            start = time.monotonic()
            for name in (".", *paths.WORKING_FOLDERS):
                remove_temporary_files(out / name)
            if damage := records.quarantine_damaged(out):
                log(f"{paths.records_file(out)}: damaged ({damage}), made again from the networks in weights/")
            plan = resume_plan(plan, feeding, out)  # before images are prepared for nothing
            stores = study_setup.open_stores(plan, log)
            setting = replace(
                study_setup.open_study(plan, stores, out),
                checkpoint_seconds=checkpoint_seconds,
                hw_share=feeding.hw_share,
                features=feeding.features,
            )
            cells = [cell for cell in plan.cells() if wanted(cell)]
            with (
                Records(paths.records_file(out)) as book,
                event_files.write_events(out) if tensorboard else nullcontext(lambda cell, checks: None) as on_checks,
            ):
                train, val = study_setup.prepare_records(book, plan, stores, setting)
                study_run = _StudyRun(setting, replace(plan, train=train, val=val), book, console, on_checks)
                finished = study_run.train(cells, stores, feeding.engine, together)
                if finished:
                    show(records.read_results(out), cells)
            if finished:
                what = "complete" if len(cells) == len(plan.cells()) else "what was asked for is trained"
                log(f"{out}: {what} after {format_duration(time.monotonic() - start)}")
    except InputError:
        if new and not paths.study_file(out).exists():  # nothing half-written
            shutil.rmtree(out, ignore_errors=True)
            with suppress(OSError):  # another study's folder is in it by now
                for parent in new[1:]:
                    parent.rmdir()
        raise
    return finished


class _StudyRun:
    """One run of a study: has its jobs done, and records and shows what they report."""

    def __init__(
        self, setting: StudyContext, plan: StudyPlan, book: Records, console: Console, on_checks: event_files.Listener
    ) -> None:
        self._setting, self._plan, self._book, self._console = setting, plan, book, console
        self._on_checks = on_checks
        self._states = book.read_ended()
        self._macs: dict[Cell, float] = {}  # of each cell's whole training, with a part of the frozen prefixes
        self._shares: dict[Cell, float] = {}  # of each cell's training that is done

    def train(self, cells: Sequence[Cell], stores: Mapping[str, Store], engine: Engine, together: Train | None) -> bool:
        """Train `cells` unless they have ended; returns False when interrupted."""
        plan, out = self._plan, self._setting.folder
        left = [cell for cell in cells if not self._state(cell)]
        if not left:
            is_all = len(cells) == len(plan.cells())
            names = f"all {len(cells)} networks" if is_all else ", ".join(cell.label for cell in cells)
            self._log(f"{out}: {names} are trained, nothing to do")
            return True
        stores = study_setup.verify_stores(plan, stores, self._log)
        study_setup.write_mean_images(self._setting, stores)
        self._book.log_event(f"{'resumed' if len(left) < len(cells) else 'started'} with {len(left)} networks to train")
        networks = f"{len(left)} of {len(cells)} networks" if len(left) < len(cells) else f"{len(cells)} networks"
        tasks = "; ".join(f"{t}: {len(plan.classes[t])} classes, {plan.train[t]} images" for t in TASKS)
        self._log(
            f"{networks} ({tasks}), recipe {plan.recipe.name} ({plan.recipe.network.name}, {plan.precision} on "
            f"{plan.device}), views: {self._setting.study.views or UNLIMITED}, in {out}"
        )
        self._log(describe_feed(plan, {task: str(store.folder) for task, store in stores.items()}))
        if together is not None:
            finished = self._train_jobs(plan_study_jobs(plan, left, 1), together)
        else:
            with closing(open_workers(engine, self._setting)) as workers:
                finished = self._train_jobs(plan_study_jobs(plan, left, workers.size), partial(run_jobs, workers))
        if not finished:
            self._book.log_event("interrupted")
            self._log(
                f"stopped; everything so far is in {out}, and fasttransfer report shows it. The same command goes on "
                "from here."
            )
        return finished

    def _train_jobs(self, division: JobPlan, train: Train) -> bool:
        for job in division.jobs:
            own = {cell: cost.trained_macs(job.network, job.outputs, cell) for cell in job.cells}
            self._macs |= {cell: job.macs * macs / sum(own.values()) for cell, macs in own.items()}
        if division.waves:
            self._log(f"memory: {division.waves}")
        with Display(self._console, sum(job.macs for job in division.jobs)) as display:
            on_message = partial(self._on_message, display)
            return train(self._setting, division, on_message, ended=self._state)

    def _on_message(self, display: Display, message: Message) -> None:
        book = self._book
        match message:
            case Started(cells, step, steps):
                names = ", ".join(c.name for c in cells[:4])
                more = f" and {len(cells) - 4} more" if len(cells) > 4 else ""
                display.doing(f"training {names}{more}")
                display.skip(self._move_to(step / steps, cells))  # a resumed cohort has done these before
            case Advanced(cells, step, steps):
                display.advance(self._move_to(step / steps, cells))
            case Checked(cell, evaluations):
                book.record_checks((cell, evaluation) for evaluation in evaluations)
                self._on_checks(cell, evaluations)
            case Ended(cell, state, steps, reason, correct):
                book.end_cell(cell, state, steps, reason, correct)
                self._states[cell.seed, cell.name] = state
                count = display.advance if state == "done" else display.skip  # else it leaves its share undone
                count(self._move_to(1.0, [cell]))
                if reason:
                    book.log_event(reason, cell.label)
                    display.note(f"{cell.name}: {reason}")
            case Noted(text, stays=True):
                book.log_event(text)
                display.note(text)
            case Noted(text):
                display.doing(text)
                display.advance(0.0)

    def _state(self, cell: Cell) -> str | None:
        """Return how `cell` ended, see `fasttransfer.study.records.Result`; None where it has not."""
        return self._states.get((cell.seed, cell.name))

    def _move_to(self, share: float, cells: Sequence[Cell]) -> float:
        """Note the share of their training that `cells` have behind them; return the multiply-adds since the last."""
        change = sum(self._macs[cell] * (share - self._shares.get(cell, 0.0)) for cell in cells)
        self._shares |= dict.fromkeys(cells, share)
        return change

    def _log(self, text: str) -> None:
        print_line(self._console, text)
