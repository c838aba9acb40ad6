"""Event files hold every validation check once, also of a study that was resumed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from studies import tiny_choices

from fasttransfer import cli
from fasttransfer.core.errors import InputError
from fasttransfer.study import records
from fasttransfer.study.cells import Cell
from fasttransfer.study.records import Evaluation
from fasttransfer.training import grid
from fasttransfer.training.event_files import write_events

CELL = Cell(0, "B", "transfer", 3)
CHECKS = tuple(Evaluation(step, None if step == 20 else 2.0, 1.5, 0.1 * step / 10) for step in (10, 20, 30))


class Writer:
    """A stand-in for TensorBoard's writer that writes lines of text."""

    def __init__(self, folder: str) -> None:
        Path(folder).mkdir(parents=True)
        self._file = (Path(folder) / "events.txt").open("a")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        print(name, round(value, 3), step, file=self._file)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


@pytest.mark.usefixtures("writer")
def test_a_folder_that_tensorboard_cannot_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(InputError, match=r"--tensorboard: .* is not UTF-8: choose another --out"):
        grid.run(tiny_choices(tmp_path), out, tensorboard=True)
    assert not out.exists()


@pytest.mark.usefixtures("writer")
def test_every_check_once_in_a_resumed_study(tmp_path: Path) -> None:
    events = tmp_path / "tensorboard" / "A3B+.s0" / "events.txt"
    cell = Cell(0, "B", "transfer+", 3)
    with write_events(tmp_path) as listener:
        listener(cell, CHECKS[:1])
        listener(cell, CHECKS[1:2])
        assert "val/top1 0.2 20" in events.read_text()  # while the study is training
    with write_events(tmp_path) as listener:
        listener(cell, CHECKS[:1])  # from its checkpoint, which was written before the second check
        listener(cell, CHECKS[1:])
        listener(cell, CHECKS)  # at its end it tells all of them
    assert [line for line in events.read_text().splitlines() if line.startswith("val/top1")] == [
        "val/top1 0.1 10", "val/top1 0.2 20", "val/top1 0.3 30",
    ]  # fmt: skip
    assert events.read_text().count("train/loss") == 2  # a loss that is no number is not a point


@pytest.mark.usefixtures("writer")
def test_a_study_is_the_same_study_with_it(tmp_path: Path) -> None:
    choices = tiny_choices(tmp_path, treatments=("random",), layers=(1,), targets=("B",))
    out = tmp_path / "out"
    assert grid.run(choices, out, tensorboard=True)
    for result in records.read_results(out).results:
        lines = (out / "tensorboard" / f"{result.name}.s0" / "events.txt").read_text().splitlines()
        assert sum(line.startswith("val/top1") for line in lines) == len(result.evaluations) == 3
    assert grid.run(choices, out)  # resumed without: nothing to do, and nothing differs


def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'fasttransfer\[tensorboard\]'"):
        grid.run(tiny_choices(tmp_path), tmp_path / "out", tensorboard=True)
    assert not (tmp_path / "out").exists()
    for words in ([], ["--dry-run"]):
        assert cli.run(["grid", "--tensorboard", "--out", str(tmp_path / "out"), *words]) == 2
        assert "pip install 'fasttransfer[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_event_files_by_the_package_itself(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with write_events(tmp_path) as listener:
        listener(CELL, CHECKS)
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / CELL.label))
    found.Reload()
    assert [point.step for point in found.Scalars("val/top1")] == [10, 20, 30]
