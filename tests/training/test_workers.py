"""Lost workers and short memory cost time only: the cells of a job end with the bits of an undisturbed run."""

from __future__ import annotations

import errno
import itertools
import multiprocessing as mp
import multiprocessing.synchronize
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from studies import RECIPE, make_setting, same, train, trained

from fasttransfer.core import devices
from fasttransfer.core.errors import InputError
from fasttransfer.networks.caffenet import CAFFENET
from fasttransfer.study.cells import Cell, base
from fasttransfer.study.configuration import Feeding
from fasttransfer.training.cohort import Cohort
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.messages import Ended, Noted, Started
from fasttransfer.training.planning import JobPlan, TrainingJob, split_in_half
from fasttransfer.training.workers import WorkerError, require_engine, run_jobs, schedule, worker_loop
from fasttransfer.training.workers.local import LocalWorkers
from fasttransfer.training.workers.worker_loop import WorkerFree, WorkerLost, WorkerMessage

CPU = torch.device("cpu")
CELLS = tuple(Cell(0, "B", t, n) for t, n in (("transfer", 3), ("selffer+", 7), ("random", 6), ("transfer", 7)))


@dataclass
class Here:
    """A crew of one worker after another, in this process.

    What befalls the worker at each job: a step after which it is lost, "untold" where it ends its job but is lost
    before it can say so, or None. A job is stopped at that step, which leaves the checkpoints of a worker that was
    killed just then.
    """

    setting: StudyContext
    fates: Sequence[object] = ()
    memory: bool = False
    size: int = 1
    hired: int = 0
    given: list[TrainingJob] = field(default_factory=list)
    _said: list[tuple[int, WorkerMessage]] = field(default_factory=list)

    def start_worker(self) -> None:
        self.hired += 1
        self._said.append((self.hired, WorkerFree()))

    def assign_job(self, worker: int, job: TrainingJob) -> None:
        fate = self.fates[len(self.given)] if len(self.given) < len(self.fates) else None
        self.given.append(job)
        calls, said = itertools.count(), list[WorkerMessage]()
        worker_loop.train_job(self.setting, job, CPU, said.append, lambda: next(calls) == fate)
        if fate == "untold":
            said = [m for m in said if not isinstance(m, Ended | WorkerFree)]
        if fate is not None:
            said = [*(m for m in said if not isinstance(m, WorkerFree)), WorkerLost("signal 9", self.memory)]
        self._said += [(worker, m) for m in said]

    def receive(self, seconds: float) -> Sequence[tuple[int, WorkerMessage]]:
        said, self._said = self._said, []
        return said

    def stop(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class Heard:
    """The messages that a driver receives, and the states of cells that have ended."""

    messages: list[object] = field(default_factory=list)
    states: dict[Cell, str] = field(default_factory=lambda: {base("A", 0): "done", base("B", 0): "done"})

    def __call__(self, message: object) -> None:
        self.messages.append(message)
        if isinstance(message, Ended):
            self.states[message.cell] = message.state

    def of(self, kind: type) -> list:
        return [m for m in self.messages if isinstance(m, kind)]


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """Train on one thread, as workers do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    with pytest.MonkeyPatch.context() as patch:  # the cache of the tests is set for one test at a time
        patch.setenv("FASTTRANSFER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return replace(make_setting(tmp_path_factory.mktemp("begun")), checkpoint_seconds=1e9)


@pytest.fixture
def setting(begun: StudyContext, tmp_path: Path) -> StudyContext:
    """Make a study's folder with both bases trained."""
    folder = tmp_path / "run"
    shutil.copytree(begun.folder, folder)
    return replace(begun, folder=folder)


def job_of(setting: StudyContext, cells: Sequence[Cell] = CELLS) -> TrainingJob:
    recipe = setting.study.recipe
    return TrainingJob(tuple(cells), recipe.network, 3, recipe.batch, recipe.steps_for(30), 45, "fp32")


def expected(setting: StudyContext, cells: Sequence[Cell] = CELLS) -> dict[str, dict[str, torch.Tensor]]:
    train(setting, cells)
    return trained(setting, cells)


def done_by(crew: schedule.WorkerPool, setting: StudyContext, job: TrainingJob) -> Heard:
    heard = Heard()
    assert run_jobs(crew, setting, JobPlan((job,), 1, ""), heard, ended=heard.states.get)
    assert set(heard.states) >= set(job.cells)
    assert set(heard.states.values()) == {"done"}
    return heard


def test_a_lost_workers_job_goes_on_from_its_checkpoints(setting: StudyContext) -> None:
    undisturbed = expected(setting)
    crew = Here(setting, fates=(4, 3, None))
    heard = done_by(crew, setting, job_of(setting))
    assert same(trained(setting, CELLS), undisturbed)
    assert [m.step for m in heard.of(Started)] == [0, 4, 7]
    assert [len(job.cells) for job in crew.given] == [4, 4, 4]
    assert crew.hired == 3
    assert [m.text for m in heard.of(Noted)] == [
        f"A3B.s0 and 3 more: worker lost (signal 9), goes on from checkpoints, try {i} of 3" for i in (1, 2)
    ]


def test_a_worker_ended_for_its_memory_is_followed_by_halves(setting: StudyContext) -> None:
    undisturbed = expected(setting)
    crew = Here(setting, fates=(5,), memory=True)
    heard = done_by(crew, setting, job_of(setting))
    assert same(trained(setting, CELLS), undisturbed)
    assert [job.cells for job in crew.given] == [CELLS, *(half.cells for half in split_in_half(job_of(setting)))]
    assert [m.step for m in heard.of(Started)] == [0, 5, 5]
    assert "goes on in 2 parts" in heard.of(Noted)[0].text


def test_a_job_that_loses_every_worker_is_given_up_with_a_sentence(setting: StudyContext) -> None:
    crew, heard = Here(setting, fates=(2, 1, 1, 1, None)), Heard()
    with pytest.raises(InputError, match=r"A3B.s0 and 3 more: 4 workers were lost, the last one: signal 9.*goes on"):
        run_jobs(crew, setting, JobPlan((job_of(setting),), 1, ""), heard, ended=heard.states.get)
    assert len(crew.given) == 1 + schedule.RETRIES
    assert len(list((setting.folder / "checkpoints").iterdir())) == len(CELLS)


def test_networks_that_a_lost_worker_wrote_are_not_trained_again(setting: StudyContext) -> None:
    undisturbed = expected(setting)
    crew = Here(setting, fates=("untold",))
    heard = done_by(crew, setting, job_of(setting))
    assert len(crew.given) == 1
    (told,) = heard.of(Noted)
    assert "worker lost (signal 9)" in told.text
    assert same(trained(setting, CELLS), undisturbed)


def test_a_job_short_of_memory_goes_on_in_halves(setting: StudyContext, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = expected(setting)
    calls = itertools.count()
    train(setting, CELLS, lambda: next(calls) == 4)
    step_of = Cohort.train_step

    def hungry(self: Cohort, step: int, active: Sequence[object]) -> None:
        if step >= 6 and len(active) > 1:
            torch.empty(1 << 50, dtype=torch.uint8)  # which no machine has
        step_of(self, step, active)  # type: ignore[arg-type]

    monkeypatch.setattr(Cohort, "train_step", hungry)
    crew = Here(setting)
    heard = done_by(crew, setting, job_of(setting))
    assert same(trained(setting, CELLS), undisturbed)
    assert sorted(job.cells for job in crew.given if len(job.cells) == 1) == [(cell,) for cell in sorted(CELLS)]
    assert {m.step for m in heard.of(Started)} == {4}
    assert crew.hired == 1
    assert len(heard.of(Noted)) == len(CELLS) - 1  # each time it is cut in two
    assert all("not enough memory" in m.text for m in heard.of(Noted))


def test_a_network_too_large_for_memory_is_an_input_error(
    setting: StudyContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cohort, "train_step", lambda *_: np.empty(1 << 50, np.uint8))
    heard = Heard()
    with pytest.raises(InputError, match=r"A3B.s0: there is not enough memory for this network alone \(.*\): free"):
        run_jobs(Here(setting), setting, JobPlan((job_of(setting, CELLS[:1]),), 1, ""), heard, ended=heard.states.get)


class Tight(LocalWorkers):
    """Worker processes that may take only 128 MB more than they have when they are given their second job."""

    given = 0

    def assign_job(self, worker: int, job: TrainingJob) -> None:
        self.given += 1
        pid = self._workers[worker].process.pid
        if self.given == 2 and pid is not None:
            size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize() + (128 << 20)
            resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
        super().assign_job(worker, job)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process")
def test_a_worker_at_its_limit_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One network fits, fourteen of 17 MB and their momenta do not: they are trained in parts.

    Whatever the first job left in the heap: one takes 100 MB, all of them take 500.
    """
    recipe = tmp_path / "wide.toml"
    recipe.write_text(RECIPE.replace("hidden = [16, 16]", "hidden = [2048, 2048]").replace("steps = 12", "steps = 2"))
    setting = replace(make_setting(tmp_path, recipe=str(recipe)), checkpoint_seconds=1e9)
    first = Cell(0, "B", "random", 1)
    cells = [Cell(0, "B", treatment, n) for treatment in ("selffer+", "transfer+") for n in CAFFENET.cuts]
    undisturbed = expected(setting, [first, *cells])
    monkeypatch.setattr(devices, "count_workers", lambda device, threads: 1)
    heard = Heard()
    with closing(Tight(setting)) as crew:
        division = JobPlan((job_of(setting, [first]), job_of(setting, cells)), 1, "")
        assert run_jobs(crew, setting, division, heard, ended=heard.states.get)
        assert crew.given > 3
    assert heard.of(Noted) and all("not enough memory" in m.text for m in heard.of(Noted))
    assert same(trained(setting, [first, *cells]), undisturbed)


def allocate_too_much() -> object:
    return torch.empty(1 << 50, dtype=torch.uint8)


def end_a_recording() -> object:
    """Raise the error of a CUDA graph that runs out of memory while it is recorded."""
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (allocate_too_much, "memory"),
        (lambda: np.empty(1 << 50, np.uint8), "Unable to allocate 1.00 PiB"),
        (lambda: bytearray(1 << 60), "MemoryError"),  # which says nothing itself
        (end_a_recording, "CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_errors_of_short_memory_are_recognised(
    setting: StudyContext, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[], object], says: str
) -> None:
    monkeypatch.setattr(Cohort, "train_step", lambda *_: attempt())
    said: list[WorkerMessage] = []
    worker_loop.train_job(setting, job_of(setting), CPU, said.append, lambda: False)
    assert isinstance(said[-1], worker_loop.OutOfMemory)
    assert says in said[-1].text and "\n" not in said[-1].text


def test_other_errors_keep_their_sentence_or_their_stack_trace(setting: StudyContext) -> None:
    for failure in (InputError("the disk is full"), WorkerError("Traceback")):
        crew = Here(setting)
        crew._said.append((1, failure))
        with pytest.raises(type(failure), match=str(failure)):
            run_jobs(crew, setting, JobPlan((job_of(setting),), 1, ""), Heard(), ended=Heard().states.get)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "broken pipe"),
        (EOFError("unexpected EOF"), "its process has ended"),
    ],
    ids=["its pipe breaks", "the process that forks it has ended"],
)
def test_a_worker_that_cannot_be_started_is_one_sentence(
    setting: StudyContext, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def broken(_: object) -> None:
        raise error

    monkeypatch.setattr(mp.context.ForkServerProcess, "start", broken)
    with closing(LocalWorkers(setting)) as crew, pytest.raises(InputError, match=rf"worker 1 .* \({why}\): see"):
        crew.start_worker()


def test_workers_need_no_shared_memory(setting: StudyContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers may lack /dev/shm, where semaphores lie."""

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(mp.synchronize.SemLock, "__init__", forbidden)
    with closing(LocalWorkers(setting)) as crew:
        assert crew.size


def test_engines_are_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--engine dask: choose local or ray"):
        Feeding(engine="dask")  # type: ignore[arg-type]
    require_engine("local")
    monkeypatch.setattr("fasttransfer.training.workers.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'fasttransfer\[ray\]'"):
        require_engine("ray")
