"""The whole way through: images in, report out; again; changed; interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from studies import (
    MANMADE,
    NATURAL,
    RECIPE,
    draw_images,
    network_tensors,
    quiet,
    said,
    same_study,
    store_of,
    tiny_choices,
)
from waiting import once_there

from fasttransfer import features
from fasttransfer.cli.grid import outcome_printer
from fasttransfer.core import devices, tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.study import paths, records
from fasttransfer.study.cells import Cell
from fasttransfer.study.configuration import Choices, Feeding
from fasttransfer.training import grid, memory_use, study_plan, study_setup, time_estimate
from fasttransfer.training.messages import Advanced, Ended, Message, Started
from fasttransfer.training.planning import JobPlan


@pytest.mark.workers
def test_the_whole_grid(tmp_path: Path) -> None:
    console, out = quiet(), tmp_path / "run"
    assert grid.run(tiny_choices(tmp_path, seeds=(0, 1)), out, console=console, show=outcome_printer(console))
    recorded = records.read_results(out)
    assert len(recorded.results) == 2 * 74
    assert {r.state for r in recorded.results} == {"done"}
    for result in recorded.results:
        assert result.steps == 12
        assert [e.step for e in result.evaluations] == [4, 8, 12]
        assert all(0 <= e.val_top1 <= 1 and e.train_loss is not None for e in result.evaluations)
    assert recorded.facts["classes"] == {"A": list(NATURAL), "B": list(MANMADE)}
    assert recorded.facts["train_pictures"] == {"A": 30, "B": 30}
    assert recorded.facts["command"].startswith("fasttransfer grid --data ")
    assert "--seeds 0 1" in recorded.facts["command"]
    assert len(network_tensors(out)) == 2 * 74
    assert not list((out / "checkpoints").iterdir())
    for name in ("index.html", "accuracy.svg", "filters.svg", "results.csv"):
        assert (out / "report" / name).stat().st_size > 0
    assert "selffer" in said(console)
    assert "complete after" in said(console)


def test_progress_reaches_the_whole_when_cells_resume_are_trained_again_or_end_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = study_plan.make_plan(tiny_choices(tmp_path, layers=(2, 6)))
    division = study_plan.plan_study_jobs(plan, plan.cells(), 1)
    display, done = MagicMock(), list[float]()
    display.__enter__.return_value.advance = display.__enter__.return_value.skip = done.append
    monkeypatch.setattr(grid, "Display", lambda console, total: display)

    def train(setting: object, division: JobPlan, on_message: Callable[[Message], None], **_: object) -> bool:
        for job in division.jobs:
            on_message(Started(job.cells, 3, 12))
            on_message(Advanced(job.cells, 9, 12))
            on_message(Started(job.cells, 6, 12))  # its worker was lost
            for cell in job.cells:
                on_message(Ended(cell, "stuck" if cell == job.cells[0] else "done", 8))
        return True

    book = MagicMock(read_ended=dict)
    run = grid._StudyRun(MagicMock(), plan, book, quiet(), lambda cell, checks: None)
    assert run._train_jobs(division, train)
    assert sum(done) == pytest.approx(sum(job.macs for job in division.jobs))
    assert book.end_cell.call_count == len(plan.cells())


def test_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    choices, out = tiny_choices(tmp_path, layers=(3,)), tmp_path / "run"
    grid.run(choices, out, console=quiet())
    before = {p: p.stat().st_mtime_ns for p in (out / "weights").iterdir()}
    console = quiet()
    assert grid.run(choices, out, console=console)
    assert "nothing to do" in said(console)
    assert before == {p: p.stat().st_mtime_ns for p in (out / "weights").iterdir()}


def test_a_changed_command_in_the_same_folder_is_refused_with_the_differences(tmp_path: Path) -> None:
    out = tmp_path / "run"
    grid.run(tiny_choices(tmp_path, layers=(3,), treatments=("transfer",)), out, console=quiet())
    before = (out / "study.toml").read_text()
    with pytest.raises(InputError) as refused:
        grid.run(
            tiny_choices(tmp_path, layers=(3,), treatments=("transfer",), batch=16, lr=0.5),
            out,
            console=quiet(),
        )
    message = str(refused.value)
    assert "recipe.batch: 8 in the study, 16 in the command" in message
    assert "recipe.lr: 0.005 in the study, 0.5 in the command" in message
    assert "--out" in message
    assert (out / "study.toml").read_text() == before


def test_changed_images_are_another_study(tmp_path: Path) -> None:
    choices, out = tiny_choices(tmp_path, layers=(3,), treatments=("random",)), tmp_path / "run"
    grid.run(choices, out, console=quiet())
    (Path(choices.data) / "train" / NATURAL[0] / "0.jpg").unlink()
    Path(choices.data).rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"\(data: .*/images in the study, .*/moved in the command; images: "):
        grid.run(replace(choices, data=str(tmp_path / "moved")), out, console=quiet())
    (tmp_path / "moved").rename(choices.data)
    with pytest.raises(InputError, match=r"\(images: "):
        grid.run(choices, out, console=quiet())


def test_a_study_goes_on_with_its_images_at_another_place(tmp_path: Path) -> None:
    """Under the name of a link, in a folder that was moved, and as a store that was made of them."""
    choices, out = (
        tiny_choices(tmp_path, layers=(3,), treatments=("random",), targets=("A",), steps=2),
        tmp_path / "run",
    )
    grid.run(choices, out, console=quiet())
    before = {p: p.stat().st_mtime_ns for p in (out / "weights").iterdir()}
    link, moved, store = (tmp_path / name for name in ("link", "moved", "store"))

    def check(named: Path, place: Path) -> None:
        console = quiet()
        assert grid.run(replace(choices, data=str(named)), out, console=console)
        assert "nothing to do" in said(console)
        assert before == {p: p.stat().st_mtime_ns for p in (out / "weights").iterdir()}
        assert records.read_results(out).data_of("A") == str(place)

    link.symlink_to(choices.data)
    check(link, Path(choices.data))
    Path(choices.data).rename(moved)
    check(moved, moved)
    assert len(features.of(out, "baseA", 3).labels) == 15  # of the images where they are now
    with pytest.raises(InputError) as refused:
        study_plan.resume_plan(study_plan.make_plan(replace(choices, data=str(moved), batch=16)), Feeding(), out)
    assert "recipe.batch: 8 in the study" in str(refused.value) and "data:" not in str(refused.value)
    store_of(replace(choices, data=str(moved)), store, "raw")
    check(store, store)


def test_lost_and_damaged_weights_are_trained_again_to_the_same_bits(tmp_path: Path) -> None:
    choices, out = tiny_choices(tmp_path, layers=(3,)), tmp_path / "run"
    grid.run(choices, out, console=quiet())
    expected = network_tensors(out)
    (out / "weights" / "A3B.s0.safetensors").unlink()
    damaged = out / "weights" / "B3B+.s0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert grid.run(choices, out, console=quiet())
    found = network_tensors(out)
    assert all(torch.equal(found[n][k], expected[n][k]) for n in expected for k in expected[n])
    assert damaged.with_name(damaged.name + ".damaged").exists()
    texts = [text for _, _, text in records.read_results(out).events]
    assert sum("trained again" in text for text in texts) == 2


def test_weights_are_read_once_after_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again after their file has changed, for which its time is enough."""
    choices, out = tiny_choices(tmp_path, layers=(3,), treatments=("transfer",), targets=("A",)), tmp_path / "run"
    assert grid.run(choices, out, console=quiet())
    spy = MagicMock(wraps=tensor_files.load)
    monkeypatch.setattr(tensor_files, "load", spy)

    def files_read() -> set[str]:
        spy.reset_mock()
        assert grid.run(choices, out, console=quiet())
        return {call.args[0].name for call in spy.call_args_list}

    written = {path.name for path in (out / "weights").iterdir()}
    assert files_read() == written and len(written) == 4
    assert files_read() == set()
    os.utime(out / "weights" / "B3A.s0.safetensors")
    assert files_read() == {"B3A.s0.safetensors"}
    assert files_read() == set()


def test_weights_that_were_written_but_not_recorded_count(tmp_path: Path) -> None:
    """The study is killed between the last file of a cell and its row in the records."""
    choices, out = tiny_choices(tmp_path, layers=(3,)), tmp_path / "run"
    grid.run(choices, out, console=quiet())
    expected = records.read_results(out).results
    with records.Records(out / "study.db") as book:
        book.reopen(Cell(0, "B", "transfer", 3))
    stamp = (out / "weights" / "A3B.s0.safetensors").stat().st_mtime_ns
    console = quiet()
    assert grid.run(choices, out, console=console)
    assert records.read_results(out).results == expected
    assert (out / "weights" / "A3B.s0.safetensors").stat().st_mtime_ns == stamp


def test_temporary_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    choices, out = tiny_choices(tmp_path, layers=(1,), treatments=("selffer",), steps=2), tmp_path / "run"
    assert grid.run(choices, out, console=quiet())
    left = [out / ".study.toml.x.tmp", *(out / name / ".file.x.tmp" for name in ("weights", "checkpoints", "means"))]
    for path in left:
        path.write_bytes(b"half")
    assert grid.run(choices, out, console=quiet())
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("split", ["natural-manmade", "random:1"])
def test_one_target_and_few_treatments(tmp_path: Path, split: str) -> None:
    choices = tiny_choices(tmp_path, split=split, targets=("B",), treatments=("transfer", "selffer"), layers=(2, 7))
    out = tmp_path / "run"
    grid.run(choices, out, console=quiet())
    assert {r.name for r in records.read_results(out).results} == {"baseA", "baseB", "B8B+", "A2B", "A7B", "B2B", "B7B"}


def test_classes_and_per_class_limit_the_images(tmp_path: Path) -> None:
    choices = tiny_choices(tmp_path, classes=2, per_class=4, layers=(1,), treatments=("transfer",))
    grid.run(choices, tmp_path / "run", console=quiet())
    facts = records.read_results(tmp_path / "run").facts
    assert {t: len(c) for t, c in facts["classes"].items()} == {"A": 2, "B": 2}
    assert facts["train_pictures"] == {"A": 8, "B": 8}
    assert facts["val_pictures"] == {"A": 10, "B": 10}


def test_a_base_that_diverges_takes_only_its_copies_with_it(tmp_path: Path) -> None:
    choices, out = tiny_choices(tmp_path, layers=(3,), lr=1e6), tmp_path / "run"
    console = quiet()
    assert grid.run(choices, out, console=console)
    results = records.read_results(out).results
    assert {r.name for r in results if r.state == "diverged"} == {"baseA", "baseB", "R3A", "R3B"}
    skipped = [r for r in results if r.state == "skipped"]
    assert len(skipped) == 10 and any(r.reason == "its source baseA diverged" for r in skipped)
    assert not network_tensors(out)


def test_a_base_at_chance_has_nothing_to_copy(tmp_path: Path) -> None:
    """Every cell ends early and the study is complete; a lost network is trained again, and no other."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.replace('init = "he"', 'init = "caffe"').replace("give_up = 1.0", "give_up = 0.5"))
    choices = tiny_choices(tmp_path, recipe=str(recipe), layers=(3,), treatments=("transfer", "selffer+", "random"))
    console, out = quiet(), tmp_path / "run"
    assert grid.run(choices, out, console=console, show=outcome_printer(console))
    results = {r.name: r for r in records.read_results(out).results}
    stuck = {"baseA", "baseB", "R3A", "R3B"}
    assert {name for name, r in results.items() if r.state == "stuck"} == stuck
    assert all([e.step for e in results[name].evaluations] == [4, 8] and results[name].steps == 8 for name in stuck)
    assert all("no better than chance" in results[name].reason for name in stuck)
    assert {r.reason for r in results.values() if r.state == "skipped"} == {
        "its source baseA is stuck",
        "its source baseB is stuck",
    }
    assert network_tensors(out).keys() == {f"{name}.s0.safetensors" for name in stuck}
    assert not list((out / "checkpoints").iterdir())
    assert "Stuck at chance, ended early, counted: baseA, baseB, R3A, R3B." in said(console)
    with records.Records(out / "study.db") as book:  # as after a kill before the last line of the records
        book.reopen(Cell(0, "B", "random", 3))
    (out / "weights" / "R3A.s0.safetensors").unlink()
    again = quiet()
    assert grid.run(choices, out, console=again)
    assert {r.name: r for r in records.read_results(out).results} == results
    assert "1 of 10 networks" in said(again)


@pytest.mark.workers
def test_an_interrupt_stops_cleanly_and_the_rest_follows(tmp_path: Path) -> None:
    """While the bases train: the first checkpoint of one says when, and the copies are still to come."""
    choices = tiny_choices(tmp_path, layers=(2,), steps=100)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    assert grid.run(choices, undisturbed, console=quiet())
    console = quiet()
    with once_there(out, "checkpoints/base*", partial(os.kill, os.getpid(), signal.SIGINT)):
        finished = grid.run(choices, out, console=console, checkpoint_seconds=0.0)
    assert not finished
    assert "The same command goes on from here" in said(console) and "complete after" not in said(console)
    interrupted = records.read_results(out)
    assert "interrupted" in [text for _, _, text in interrupted.events]
    assert {r.state for r in interrupted.results if r.treatment not in ("base", "random")} == {"planned"}
    kept = {path.stem for path in (out / "checkpoints").iterdir()}
    assert {f"{r.name}.s{r.seed}" for r in interrupted.results if r.state == "running"} <= kept
    assert grid.run(choices, out, console=quiet())
    same_study(undisturbed, out)


def test_a_dry_run_lists_every_network_and_writes_nothing(tmp_path: Path) -> None:
    console, out = quiet(), tmp_path / "run"
    time_estimate.dry_run(tiny_choices(tmp_path), out, console=console)
    text = said(console)
    assert all(name in text for name in ("baseA", "A3B+", "R7A", "fine-tuned", "frozen", "about", "74 networks"))
    assert not out.exists()


def test_the_division_into_jobs_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = tiny_choices(tmp_path, layers=(2, 7))
    for workers in (1, 3):
        monkeypatch.setattr(devices, "count_workers", lambda device, threads, n=workers: n)
        grid.run(choices, tmp_path / str(workers), console=quiet())
    same_study(tmp_path / "1", tmp_path / "3")
    # Room for two processes with a network of a few thousand weights each, hardly more: waves of single cells.
    monkeypatch.setattr(memory_use, "_GAPS", 1000.0)
    monkeypatch.setattr(memory_use, "free_memory", lambda *sizes: 2_400_000_000)
    console = quiet()
    grid.run(choices, tmp_path / "waves", console=console)
    assert "memory: 2 of 3 workers train at the same time and cohorts train in waves of at most" in said(console)
    same_study(tmp_path / "1", tmp_path / "waves")


def test_a_network_too_large_for_the_memory_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_use, "free_memory", lambda *sizes: 500_000_000)
    with pytest.raises(InputError, match=r"one network .* needs .* of memory to train, 500 MB are free"):
        grid.run(tiny_choices(tmp_path), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with study_setup.lock_folder(out), pytest.raises(InputError, match="another run is working here"):
        grid.run(tiny_choices(tmp_path, layers=(1,)), out, console=quiet())


def test_a_folder_whose_name_is_too_long_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name too long"):
        grid.run(tiny_choices(tmp_path), tmp_path / ("x" * 300), console=quiet())


def test_default_folder_is_named_after_images_and_split(tmp_path: Path) -> None:
    assert study_plan.make_plan(tiny_choices(tmp_path, split="random:3")).out == Path("runs/images-random-3")


@pytest.mark.parametrize(("folder", "data"), [("images", "."), ("images/train", "..")])
def test_a_default_folder_inside_the_images_has_their_name_and_is_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, data: str
) -> None:
    choices = tiny_choices(tmp_path, split="random:3", layers=(3,), treatments=("random",), targets=("A",), steps=2)
    before = study_plan.make_plan(choices)
    monkeypatch.chdir(tmp_path / folder)
    inside = replace(choices, data=data)
    plan = study_plan.make_plan(inside)
    assert plan.out == Path("runs/images-random-3")
    setting = study_setup.open_study(plan, study_setup.open_stores(plan, lambda text: None), plan.out)
    page = paths.report_folder(plan.out) / "curves.png"
    page.parent.mkdir()
    page.write_bytes(next((tmp_path / "images").rglob("*.jpg")).read_bytes())
    again = study_plan.make_plan(inside)
    assert (again.classes, again.train, again.val) == (before.classes, before.train, before.val)
    same = study_setup.open_study(again, study_setup.open_stores(again, lambda text: None), plan.out)
    assert same.study == setting.study
    listing = again.sources["A"].images.listing
    assert listing is not None and "folders that fasttransfer wrote left out: " in listing.notes[0]


def test_the_recipe_follows_the_images(tmp_path: Path) -> None:
    of_ilsvrc12 = replace(tiny_choices(tmp_path), recipe=None)  # class folders named by wnid
    assert study_plan.make_plan(of_ilsvrc12).recipe.name == "caffe"
    others = draw_images(tmp_path / "others", ("cat", "dog", "car", "bus"))
    assert study_plan.make_plan(replace(of_ilsvrc12, data=str(others), split="random:0")).recipe.name == "mini"
    assert study_plan.make_plan(Choices()).recipe.name == "mini"  # the built-in images


def test_a_study_of_an_earlier_version_is_refused_and_still_reported(tmp_path: Path) -> None:
    choices, out = tiny_choices(tmp_path, layers=(3,), treatments=("transfer",), steps=2), tmp_path / "run"
    grid.run(choices, out, console=quiet())
    toml = out / "study.toml"
    toml.write_text(toml.read_text().replace("version = 2\n", ""))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"no base.: report, advise and compare still read it"):
        grid.run(choices, out, console=quiet())
    with pytest.raises(InputError, match="choose another --out"):
        time_estimate.dry_run(choices, out, console=quiet())
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert len(records.read_results(out).results) == 6


def test_the_built_in_study_has_two_seeds_and_others_one_unless_asked(tmp_path: Path) -> None:
    assert study_plan.make_plan(Choices(device="cpu")).seeds == (0, 1)
    assert study_plan.make_plan(tiny_choices(tmp_path)).seeds == (0,)
    assert study_plan.make_plan(Choices(device="cpu", seeds=(5,))).seeds == (5,)
