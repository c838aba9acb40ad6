"""Task A is one data set and task B another: of other sizes, classes and layouts, with some class names in both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from studies import draw_images, quiet, said, same_study, tiny_recipe

from fasttransfer import features
from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.layouts import list_images
from fasttransfer.pipelines.mean_images import compute_mean_image
from fasttransfer.pipelines.prepare import prepare_into
from fasttransfer.pipelines.store import Store
from fasttransfer.pipelines.streams import select_task_images
from fasttransfer.report import write_report
from fasttransfer.report.analysis.comparison import compare
from fasttransfer.study import records
from fasttransfer.study.configuration import TWO_DATA_SETS, Choices, Study
from fasttransfer.training import grid, time_estimate

PETS, ROADS = ("cat", "dog", "van"), ("bus", "car", "van", "tram")  # a van is in both


def two_choices(folder: Path, **changes: object) -> Choices:
    """A folder of three classes, and a store of four with fewer images."""
    recipe = Path(tiny_recipe(folder)).read_text()
    (folder / "tiny.toml").write_text(recipe.replace("steps = 12", "epochs = 3"))
    draw_images(folder / "pets", PETS, train=10, val=5, side=48)
    draw_images(folder / "roads", ROADS, train=6, val=4)
    prepare_into(list_images(folder / "roads"), folder / "store", size=32, log=lambda text: None)
    values = {
        "data_a": str(folder / "pets"), "data_b": str(folder / "store"), "recipe": str(folder / "tiny.toml"),
        "device": "cpu", "layers": (3,), "treatments": ("transfer", "transfer+"), "views": 1,
    }  # fmt: skip
    return Choices(**{**values, **changes})  # type: ignore[arg-type]


def test_each_task_has_its_own_images_classes_budget_and_mean(tmp_path: Path) -> None:
    out, console = tmp_path / "run", quiet()
    assert grid.run(two_choices(tmp_path), out, console=console)
    recorded = records.read_results(out)
    assert {result.state for result in recorded.results} == {"done"}
    assert recorded.facts["classes"] == {"A": sorted(PETS), "B": sorted(ROADS)}
    assert (recorded.facts["train_pictures"], recorded.facts["val_pictures"]) == (
        {"A": 30, "B": 24},
        {"A": 15, "B": 16},
    )
    assert recorded.facts["steps"] == {"A": 12, "B": 9}
    assert {(r.name, r.steps) for r in recorded.results} >= {("baseA", 12), ("baseB", 9), ("A3B", 9), ("B3A+", 12)}
    study = Study.read(out / "study.toml")
    assert (study.split, study.data_of("A"), study.data_of("B")) == (
        TWO_DATA_SETS, str(tmp_path / "pets"), str(tmp_path / "store"),
    )  # fmt: skip
    store = Store.open(tmp_path / "store")
    mean = compute_mean_image(select_task_images(store, store.train, tuple(sorted(ROADS))))
    assert np.array_equal(np.load(out / "means" / "B.npy"), mean)
    assert "images of task A" in said(console) and "images of task B" in said(console)
    page = write_report(recorded, out).read_text()
    assert "12 steps on task A and 9 steps on task B" in page and "pets and store" in page


def test_the_same_command_does_nothing_more_and_an_interrupted_one_resumes_exactly(tmp_path: Path) -> None:
    choices, whole, parts = two_choices(tmp_path), tmp_path / "whole", tmp_path / "parts"
    assert grid.run(choices, whole, console=quiet())
    grid.run(choices, parts, console=quiet(), wanted=lambda cell: cell.target == "A")
    assert grid.run(choices, parts, console=quiet())
    same_study(whole, parts)
    console = quiet()
    assert grid.run(choices, whole, console=console)
    assert "nothing to do" in said(console)
    assert compare([records.read_results(whole), records.read_results(parts)])
    with pytest.raises(InputError, match="another study is here"):
        grid.run(replace(choices, data_b=str(tmp_path / "pets")), whole, console=quiet())


def test_features_of_a_network_over_either_task_are_of_that_tasks_images(tmp_path: Path) -> None:
    out = tmp_path / "run"
    grid.run(two_choices(tmp_path), out, console=quiet())
    own, other = (features.of(out, "baseA", cut=2, task=task) for task in ("A", "B"))
    assert (len(own.ids), own.classes) == (15, tuple(sorted(PETS)))
    assert (len(other.ids), other.classes) == (16, tuple(sorted(ROADS)))


def test_the_estimate_counts_what_either_set_needs(tmp_path: Path) -> None:
    console = quiet()
    time_estimate.dry_run(two_choices(tmp_path), console=console)
    text = said(console)
    assert "task A: 3 classes, 30 training and 15 validation images" in text
    assert "task B: 4 classes, 24 training and 16 validation images" in text
    assert "pets-store" in text  # the default folder


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data_a": "x"}, "--data-a and --data-b: give both or neither"),
        ({"data_a": "x", "data_b": "y", "split": "random:0"}, "drop --data and --split"),
        ({"data_a": "x", "data_b": "y", "data": "z"}, "drop --data and --split"),
    ],
)
def test_two_data_sets_leave_nothing_to_split(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        Choices(**options)  # type: ignore[arg-type]
    assert sentence in str(refused.value)


def test_a_data_set_of_one_class_is_no_task(tmp_path: Path) -> None:
    choices = two_choices(tmp_path)
    draw_images(tmp_path / "one", ("only",))
    with pytest.raises(InputError, match="one: train/ holds one class only"):
        time_estimate.dry_run(replace(choices, data_b=str(tmp_path / "one")), console=quiet())
