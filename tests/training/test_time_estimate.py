"""A dry run estimates schedule, memory and the rest of a study, and writes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from studies import quiet, said, settled, tiny_choices

from fasttransfer.core import devices, tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import make_folder
from fasttransfer.networks.caffenet import CAFFENET_MINI
from fasttransfer.study.cells import TASKS, Cell, base, base_plus
from fasttransfer.study.paths import weights_file
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training import grid, job_times, simulation, study_plan, time_estimate
from fasttransfer.training.cohort import Cohort
from fasttransfer.training.job_times import JobTimes, MachineTimes
from fasttransfer.training.planning import TrainingJob

SIZES = (CAFFENET_MINI, 16, 32, 320, 5 * 640, "fp32")
MINI = replace(load_recipe("mini"), checks=5)


def times_of(job: TrainingJob, write: float = 0.0) -> MachineTimes:
    """Return a second per step, 0.01 per validation image and ten to build, all halved for a worker alone."""
    return MachineTimes(1.0, write, 0.5, {job.shape: JobTimes(10.0, 1.0, 0.01)})


def alike(job: TrainingJob) -> simulation.JobCost:
    """Return a cost of one second."""
    return {"training": 1.0, "validation": 0.0, "building": 0.0, "saving": 0.0}


def test_a_job_takes_its_building_its_steps_and_its_validations() -> None:
    job = TrainingJob((Cell(3, "A", "transfer", 2), Cell(3, "A", "transfer+", 5)), *SIZES)
    found = simulation.job_cost(MINI, times_of(job), job, {})
    assert found == {"training": 320, "validation": pytest.approx(5 * 640 * 0.01), "building": 10, "saving": 0}


def test_jobs_of_other_seeds_and_targets_have_one_shape_and_others_have_not() -> None:
    job = TrainingJob((Cell(0, "A", "transfer", 2), base_plus("A", 0, 8)), *SIZES)
    assert job.shape == replace(job, cells=(base_plus("B", 1, 8), Cell(1, "B", "transfer", 2))).shape
    assert job.shape != replace(job, cells=(Cell(0, "A", "selffer", 2), base_plus("A", 0, 8))).shape
    assert job.shape != replace(job, outputs=17).shape


def test_a_stopped_job_costs_the_steps_and_checks_that_are_left() -> None:
    one, other = Cell(0, "B", "transfer", 2), Cell(0, "B", "transfer+", 5)
    job = TrainingJob((one, other), *SIZES)
    found = simulation.job_cost(MINI, times_of(job), job, {one: 300, other: 100})
    assert found["training"] == 220  # until the one that is behind has ended
    assert found["validation"] == pytest.approx(4 * 640 * 0.01)


def test_checkpoints_take_their_share_of_long_trainings() -> None:
    job = TrainingJob((base("A", 0),), *SIZES)
    short = replace(job, steps=20)
    brief = simulation.job_cost(MINI, times_of(short, 1e-9), short, {})
    long = simulation.job_cost(MINI, times_of(job, 1e-9), job, {})
    assert long["saving"] > 10 * brief["saving"] > 0
    slow = simulation.job_cost(MINI, times_of(job, 1e-5), job, {})  # a checkpoint takes longer than 30 s
    assert slow["saving"] < slow["training"] / 20 + 1e-5 * 16 * 600_000


@pytest.mark.parametrize(("workers", "seconds"), [(1, (2.0, 3.0)), (2, (1.0, 1.5)), (3, (0.75, 1.0))])
def test_jobs_wait_for_their_bases_and_a_worker_alone_is_faster(workers: int, seconds: tuple[float, float]) -> None:
    bases = [TrainingJob((base(task, 0),), *SIZES) for task in "AB"]
    copies = [TrainingJob((Cell(0, "B", "transfer", n),), *SIZES) for n in (1, 2, 3)]
    jobs = [*bases, *copies]
    pace = 1.0 if workers == 1 else 0.5
    found = simulation.simulate(jobs, {job: alike(job) for job in jobs}, workers, pace, set())
    assert (sum(found[0].values()), sum(found[1].values())) == pytest.approx(seconds)


def test_copies_start_as_soon_as_their_own_base_has_ended() -> None:
    slow, quick = (TrainingJob((base(task, 0),), *SIZES) for task in "AB")
    copy = TrainingJob((Cell(0, "B", "selffer", 3),), *SIZES)
    costs: dict[TrainingJob, simulation.JobCost]
    costs = {slow: {"training": 3.0}, quick: {"training": 1.0}, copy: {"training": 2.0}}
    bases, copies = simulation.simulate([slow, quick, copy], costs, 2, 1.0, set())
    assert sum(bases.values()) + sum(copies.values()) == pytest.approx(3.0)
    assert copies["training"] == pytest.approx(1.0)  # two seconds, shared with the slow base
    bases, copies = simulation.simulate([copy], costs, 2, 1.0, {base("B", 0)})
    assert copies["training"] == pytest.approx(2.0)


def test_a_dry_run_of_a_study_in_its_folder_counts_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices, out = tiny_choices(tmp_path, layers=(2, 6), treatments=("transfer", "transfer+")), tmp_path / "run"
    monkeypatch.setattr(devices, "count_workers", lambda device, threads: 2)
    plan = study_plan.make_plan(choices)
    assert grid.run(choices, out, console=quiet())
    ended = time_estimate.read_progress(plan, out)
    assert ended.ended == set(plan.cells())
    console = quiet()
    time_estimate.dry_run(choices, out, console=console)
    assert "0 of 12 networks are left" in said(console) and "all are trained" in said(console)

    lost = Cell(0, "B", "transfer+", 6)
    path = weights_file(out, lost)
    tensors, about = tensor_files.load(path)
    path.unlink()
    tensor_files.save(out / "checkpoints" / path.name, tensors, about | {"step": 7})
    before = sorted(p.name for p in tmp_path.rglob("*"))
    begun = time_estimate.read_progress(plan, out)
    assert begun.ended == set(plan.cells()) - {lost}
    assert begun.steps == {lost: 7}
    found = time_estimate.forecast(plan, begun, study_plan.plan_study_jobs(plan, [lost]), 0.2)
    assert found.seconds["copies"] > 0 == found.seconds["bases"]
    assert found.disk["weights"] == pytest.approx(path.with_name("baseB.s0.safetensors").stat().st_size, rel=0.2)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="another study is here"):
        time_estimate.dry_run(replace(choices, batch=4), out, console=quiet())


@pytest.mark.parametrize("views", [None, 2])
def test_a_cohort_is_timed_with_few_images_where_a_step_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int | None
) -> None:
    plan, store = settled(tiny_choices(tmp_path, layers=(2, 6), views=views))
    job = max(study_plan.plan_study_jobs(plan, plan.cells(), 1).jobs, key=lambda job: len(job.cells)).shape
    monkeypatch.setattr(job_times, "_FEW", 2)
    monkeypatch.setattr(job_times, "_LONGEST", 0.0)
    scratch = make_folder(tmp_path / "scratch")
    cohort = job_times._TimedCohort(
        study_plan.make_study(plan, dict.fromkeys(TASKS, "")), job, store, scratch, torch.device("cpu")
    )
    cohort.warm_up()
    sizes: list[int] = []
    step_of = Cohort.train_step

    def step(self: Cohort, step: int) -> None:
        sizes.append(len(self._target.feed.train(step).labels))
        step_of(self, step)

    monkeypatch.setattr(Cohort, "train_step", step)
    assert all(seconds > 0 for seconds in cohort.measure(0.1))
    cohort.close()
    assert set(sizes) == {2, 1}
    assert not list(scratch.iterdir())
