"""A study small enough for tests: real JPEG files, a network of a few thousand weights, a second of training."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from fasttransfer.core import tensor_files
from fasttransfer.core.files import cache_folder
from fasttransfer.pipelines.prepare import prepare, prepare_into
from fasttransfer.pipelines.store import Kind, Store
from fasttransfer.study import records
from fasttransfer.study.cells import TASKS, Cell, base
from fasttransfer.study.configuration import Choices, Study
from fasttransfer.study.paths import weights_file
from fasttransfer.study.records import Records
from fasttransfer.training import study_plan, study_setup
from fasttransfer.training.cohort import Cohort
from fasttransfer.training.cohort_builder import StudyContext, build_cohort
from fasttransfer.training.job_times import JobTimes, MachineTimes
from fasttransfer.training.messages import Checked, Ended, Message
from fasttransfer.training.planning import TrainingJob
from fasttransfer.training.study_plan import StudyPlan

NATURAL = ("n01440764", "n01443537", "n01484850")  # tench, goldfish, great white shark
MANMADE = ("n02672831", "n02687172", "n02690373")  # accordion, aircraft carrier, airliner

RECIPE = """
name = "tiny"
batch = 8
steps = 12
checks = 3
lr = 0.005
lr_drops = [0.5]
lr_factor = 0.1
momentum = 0.9
weight_decay = 0.0005
bias_lr = 2.0
bias_decay = 0.0
dropout = 0.5
init = "he"
scale = 0.015625
outputs = "task"
give_up = 1.0  # a dozen steps are too few to judge by

[network]
name = "tiny"
store = 32
crop = 29
kernel = 5
stride = 2
channels = [8, 12, 8, 8, 8]
hidden = [16, 16]
"""


def draw_images(folder: Path, classes: tuple[str, ...], *, train: int = 10, val: int = 5, side: int = 32) -> Path:
    """Draw an ImageFolder of noise around a colour per class, so that there is something to learn."""
    random = np.random.default_rng(0)
    for number, name in enumerate(classes):
        colour = np.array([(number * 67) % 200, (number * 131) % 200, (number * 29) % 200])
        for part, count in (("train", train), ("val", val)):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = (colour + random.integers(0, 56, (side, side, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.jpg", quality=90)
    return folder


def tiny_recipe(folder: Path) -> str:
    """Path of the recipe file, written into `folder`."""
    path = folder / "tiny.toml"
    path.write_text(RECIPE)
    return str(path)


def tiny_choices(folder: Path, **changes: object) -> Choices:
    """The study of six classes in `folder`/images (drawn unless there) with the tiny recipe."""
    images = folder / "images"
    if not images.exists():
        draw_images(images, NATURAL + MANMADE)
    values: dict[str, object] = {"data": str(images), "recipe": tiny_recipe(folder), "device": "cpu"}
    return Choices(**{**values, **changes})  # type: ignore[arg-type]


def settled(choices: Choices) -> tuple[StudyPlan, Store]:
    """Return the plan of `choices` and their prepared images."""
    plan = study_plan.make_plan(choices)
    side = plan.recipe.network.store
    return plan, prepare(Path(choices.data), size=side, cache=cache_folder(), log=lambda _: None)


def ready(plan: StudyPlan, store: Store, out: Path) -> StudyContext:
    """A new study in `out`, ready to be trained."""
    setting = study_setup.open_study(plan, dict.fromkeys(TASKS, store), out)
    study_setup.write_mean_images(setting, dict.fromkeys(TASKS, store))
    return setting


def with_bases(choices: Choices, out: Path) -> StudyContext:
    """A new study in `out` with both bases of seed 0 trained."""
    setting = ready(*settled(choices), out)
    for task in TASKS:
        cohort = build_cohort(setting, [base(task, 0)], torch.device(setting.study.device))
        cohort.run(lambda _: None, lambda: False, 1e9)
    return setting


def trained_study(folder: Path, cells: Sequence[Cell], **changes: object) -> Path:
    """The folder of the tiny study with `cells` trained and recorded, in this process; the others are planned."""
    choices = tiny_choices(folder, **changes)
    plan, store = settled(choices)
    setting = ready(plan, store, folder / "run")
    out = setting.folder
    with Records(out / "study.db") as book:
        study_setup.prepare_records(book, plan, dict.fromkeys(TASKS, store), setting)

        def on_message(message: Message) -> None:
            if isinstance(message, Checked):
                book.record_checks((message.cell, e) for e in message.evaluations)
            elif isinstance(message, Ended):
                book.end_cell(message.cell, message.state, message.steps, message.reason, message.correct)

        for cell in cells:
            build_cohort(setting, [cell], torch.device("cpu")).run(on_message, lambda: False, 1e9)
    return out


def unit_times(study: Study, jobs: Sequence[TrainingJob], *_: object) -> MachineTimes:
    """Stand in for `time_jobs`: a second for everything, half of it alone, nothing for writing."""
    return MachineTimes(1.0, 0.0, 0.5, {job.shape: JobTimes(1.0, 1.0, 1.0) for job in jobs})


def never() -> bool:
    return False


def make_setting(tmp_path: Path, **changes: object) -> StudyContext:
    return with_bases(tiny_choices(tmp_path, **changes), tmp_path / "run")


def train(
    setting: StudyContext, cells: Sequence[Cell], stop: Callable[[], bool] = never, seconds: float = 1e9
) -> list[Message]:
    heard: list[Message] = []
    build_cohort(setting, cells, torch.device(setting.study.device)).run(heard.append, stop, seconds)
    return heard


def trained(setting: StudyContext, cells: Sequence[Cell]) -> dict[str, dict[str, Tensor]]:
    found = {c.label: tensor_files.load(weights_file(setting.folder, c))[0] for c in cells}
    for cell in cells:
        weights_file(setting.folder, cell).unlink()
    return found


def same(one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[c][name], other[c][name]) for c in one for name in one[c])


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def network_tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {p.name: tensor_files.load(p)[0] for p in sorted((folder / "weights").glob("*.safetensors"))}


def same_study(one: Path, other: Path) -> None:
    """Every weight and record of two finished runs is equal."""
    ours, theirs = network_tensors(one), network_tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensors in ours.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, theirs[name][key]), (name, key)
    assert records.read_results(one).results == records.read_results(other).results


def store_of(choices: Choices, folder: Path, kind: Kind, size: int = 32) -> Store:
    return prepare_into(Path(choices.data), folder, size=size, kind=kind, log=lambda text: None)


def setting_in(out: Path, choices: Choices, store: Store) -> StudyContext:
    """A study on `store`, ready to be trained in `out`."""
    return ready(study_plan.make_plan(replace(choices, data=str(store.folder))), store, out)


def cohort(setting: StudyContext, cells: list[Cell]) -> Cohort:
    return build_cohort(setting, cells, torch.device("cpu"))
