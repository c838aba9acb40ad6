"""What --dry-run says: the schedule, what is left of a study, memory; and that none of it is written."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from studies import RATES, tiny_choices

from fasttransfer.core import devices, tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.networks.geometry import CAFFENET_MINI
from fasttransfer.study.cells import Cell, base
from fasttransfer.study.paths import weights_file
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training import grid, simulation, study_plan, time_estimate
from fasttransfer.training.planning import TargetSizes, TrainingJob

TERMS = TargetSizes(CAFFENET_MINI, 16, 32, 320, 5 * 640, "fp32")
MINI = replace(load_recipe("mini"), checks=5)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def alike(job: TrainingJob) -> simulation.Spent:
    """One second each."""
    return {"training": 1.0, "validation": 0.0, "building": 0.0, "saving": 0.0}


def test_a_job_takes_its_steps_its_prefixes_once_and_its_validations() -> None:
    job = TrainingJob((Cell(0, "B", "transfer", 2), Cell(0, "B", "transfer", 5), Cell(0, "B", "transfer+", 5)), TERMS)
    found = simulation.spent(MINI, RATES, job, {})
    assert found["training"] == pytest.approx(320 * (3 + 5 * 0.01))
    behind = 6 + 3 + 8  # stages that each validates by itself
    assert found["validation"] == pytest.approx(5 * 20 * (behind + 5) * 0.01)


def test_of_a_job_that_was_stopped_what_is_left_is_counted() -> None:
    one, other = Cell(0, "B", "transfer", 2), Cell(0, "B", "transfer+", 5)
    found = simulation.spent(MINI, RATES, TrainingJob((one, other), TERMS), {one: 300, other: 100})
    assert found["training"] == pytest.approx(20 * 1.02 + 220)
    assert found["validation"] == pytest.approx(20 * 0.01 * (1 * (6 + 2) + 4 * 8))


def test_checkpoints_take_their_share_of_long_trainings() -> None:
    job = TrainingJob((base("A", 0),), TERMS)
    short = simulation.spent(MINI, replace(RATES, save=1e-9), replace(job, terms=replace(TERMS, steps=20)), {})
    long = simulation.spent(MINI, replace(RATES, save=1e-9), job, {})
    assert long["saving"] > 10 * short["saving"] > 0
    slow = simulation.spent(MINI, replace(RATES, save=1e-5), job, {})  # a checkpoint takes longer than 30 s
    assert slow["saving"] < slow["training"] / 20 + 1e-5 * 16 * 600_000


@pytest.mark.parametrize(("workers", "seconds"), [(1, (2.0, 3.0)), (2, (1.0, 1.5)), (3, (0.75, 1.0))])
def test_jobs_wait_for_their_bases_and_a_worker_alone_is_faster(workers: int, seconds: tuple[float, float]) -> None:
    bases = [TrainingJob((base(task, 0),), TERMS) for task in "AB"]
    copies = [TrainingJob((Cell(0, "B", "transfer", n),), TERMS) for n in (1, 2, 3)]
    jobs = [*bases, *copies]
    pace = 1.0 if workers == 1 else 0.5
    found = simulation.simulate(jobs, {job: alike(job) for job in jobs}, workers, pace, set())
    assert (sum(found[0].values()), sum(found[1].values())) == pytest.approx(seconds)


def test_copies_start_as_soon_as_their_own_base_has_ended() -> None:
    slow, quick = (TrainingJob((base(task, 0),), TERMS) for task in "AB")
    copy = TrainingJob((Cell(0, "B", "selffer", 3),), TERMS)
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
