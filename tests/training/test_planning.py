"""A grid is divided into jobs: which cells train together, and the cost of each job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fasttransfer.core.errors import InputError
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI
from fasttransfer.study.cells import TREATMENTS, Cell, base, study_cells
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training import cost, memory_use
from fasttransfer.training.planning import JobPlan, TrainingJob, plan_jobs, split_in_half

SIZES = (CAFFENET_MINI, 16, 32, 320, 3200, "fp32")
GB = 10**9
CLASSES = {"A": ("a", "b"), "B": ("c", "d")}


def test_a_job_costs_its_training_and_its_validations() -> None:
    job = TrainingJob((base("A", 0),), *SIZES)
    whole = sum(CAFFENET_MINI.macs(16))
    first = CAFFENET_MINI.macs(16)[0]
    assert job.macs == 320 * 32 * (3 * whole - first) + 3200 * whole


def test_halves_are_the_same_cells_at_about_half_of_the_cost() -> None:
    cells = tuple(Cell(0, "B", treatment, n) for treatment in TREATMENTS for n in (1, 4, 7))
    job = TrainingJob(cells, *SIZES)
    one, other = split_in_half(job)
    assert sorted((*one.cells, *other.cells)) == sorted(cells)
    assert one.macs >= other.macs > 0.7 * one.macs
    frozen = cost.prefix_macs(CAFFENET_MINI, 16, cells) * (320 * 32 + 3200)
    assert job.macs <= one.macs + other.macs <= job.macs + frozen  # each half runs the prefixes it needs


def test_one_cell_has_no_halves() -> None:
    job = TrainingJob((base("A", 0),), *SIZES)
    assert split_in_half(job) == (job,)


def divide(workers: int, free: int | None, recipe: str = "mini", batch: int = 32) -> JobPlan:
    cells = study_cells(("A", "B"), TREATMENTS, range(1, 8), (0,), 8)
    counts = {"A": 100, "B": 300}
    of = replace(load_recipe(recipe), batch=batch)
    return plan_jobs(of, cells, CLASSES, counts, counts, workers, "fp32", free)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("free", [None, 100 * GB, 3 * GB])
def test_every_cell_is_in_one_job_and_bases_come_first(workers: int, free: int | None) -> None:
    division = divide(workers, free)
    cells = study_cells(("A", "B"), TREATMENTS, range(1, 8), (0,), 8)
    assert sorted(c for job in division.jobs for c in job.cells) == sorted(cells)
    is_base = [job.cells[0].treatment == "base" for job in division.jobs]
    assert is_base == sorted(is_base, reverse=True)
    assert all(len({(c.seed, c.target) for c in job.cells}) == 1 for job in division.jobs)


def test_where_memory_is_plenty_nothing_is_cut_and_nothing_said() -> None:
    plenty, unknown = divide(2, 100 * GB), divide(2, None)
    assert plenty == unknown
    assert (plenty.workers, plenty.waves) == (2, "")


@pytest.mark.parametrize("free", [2.2, 3, 6, 12, 24])
def test_what_trains_at_the_same_time_fits_into_its_share_of_the_free_memory(free: float) -> None:
    division = divide(2, int(free * GB), "caffe", 8)
    assert division.bytes <= memory_use.SHARE * free * GB
    whole = divide(2, None, "caffe", 8)
    assert len(division.jobs) > len(whole.jobs)
    assert "waves of at most" in division.waves
    assert ("1 of 2 workers" in division.waves) == (division.workers == 1)


def test_less_memory_means_more_waves_then_fewer_workers() -> None:
    found = [divide(4, int(free * GB), "caffe", 8) for free in (64, 24, 10, 5, 2.2)]
    counts = [len(division.jobs) / division.workers for division in found]
    assert counts == sorted(counts)
    workers = [division.workers for division in found]
    assert workers[0] == 4 and workers[-1] == 1 and workers == sorted(workers, reverse=True)


def test_a_network_that_does_not_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        InputError, match=r"caffenet, fp32, batch 256\) needs .* GB of memory .* smaller --batch"
    ) as told:
        divide(2, 2 * GB, "caffe", 256)
    assert "--precision bf16" in str(told.value)
    assert divide(2, 2 * GB).workers == 2  # small ones do fit


def test_memory_grows_with_cells_and_a_frozen_cell_takes_what_it_trains() -> None:
    def memory(*cells: Cell, batch: int = 64) -> int:
        return memory_use.cohort_bytes(CAFFENET, 500, batch, "fp32", cells)

    whole, frozen = Cell(0, "B", "transfer+", 6), Cell(0, "B", "transfer", 6)
    each = 8 * CAFFENET.weight_count(500)
    more = memory(whole, Cell(0, "B", "transfer+", 5)) - memory(whole)
    assert more == pytest.approx(each, rel=0.1)
    assert memory(whole, frozen) - memory(whole) < 1.2 * each  # its source and its last two layers
    assert memory(whole, batch=256) > memory(whole) > memory(frozen)
