"""A dry run refuses what the run would refuse, as far as that can be known without decoding an image."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from studies import NATURAL, quiet, settled, store_of, tiny_choices

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines import dali_feed
from fasttransfer.study.cells import TASKS
from fasttransfer.study.configuration import Choices, Feeding
from fasttransfer.training import grid, study_setup, time_estimate, workers


def _one_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Choices:
    choices = tiny_choices(folder)
    for path in sorted((folder / "images/train" / NATURAL[0]).iterdir())[1:]:
        path.unlink()
    shutil.rmtree(folder / "images/val")
    return choices


def _no_ray(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Feeding:
    monkeypatch.setattr(workers, "find_spec", lambda name: None)
    return Feeding(engine="ray")


def _no_dali(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Feeding:
    monkeypatch.setattr(dali_feed, "has_dali", lambda: False)
    return Feeding("dali")


def _small_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(folder / "cache"))
    monkeypatch.setattr(time_estimate, "_SAMPLE", 4)  # else the sample is all there is
    monkeypatch.setattr(time_estimate, "_FEW", 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))


def _no_folder_for_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cache").write_text("in the way")
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(folder / "cache"))


def _file_in_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "runs").write_text("in the way")


def _other_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Choices:
    choices = tiny_choices(folder)
    plan, store = settled(choices)
    study_setup.open_study(plan, dict.fromkeys(TASKS, store), folder / "runs/a")
    (folder / "images/train" / NATURAL[0] / "0.jpg").unlink()
    return replace(choices, data=str(store_of(choices, folder / "store", "raw").folder))


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (_one_image, f"no validation image of {NATURAL[0]}"),
        (_no_ray, "--engine ray needs the package ray"),
        (_no_dali, "DALI"),
        (_small_disk, "0 MB, the disk has 0 MB free"),
        (_no_folder_for_the_cache, "cache"),
        (_file_in_the_way, "runs"),
        (_other_images, "another study is here (data: "),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[..., object], sentence: str
) -> None:
    changed = prepare(tmp_path, monkeypatch)
    choices = changed if isinstance(changed, Choices) else tiny_choices(tmp_path)
    feeding = changed if isinstance(changed, Feeding) else None

    def files() -> list[Path]:
        return sorted(p for p in tmp_path.rglob("*") if p.is_file() and not p.name.endswith(".lock"))

    before = files()
    for run in (time_estimate.dry_run, grid.run):
        with pytest.raises(InputError, match=re.escape(sentence)):
            run(choices, tmp_path / "runs/a", feeding=feeding, console=quiet())
        assert files() == before
