"""The folder of a study on disk: every path in it is spelled here.

study.toml                      what is trained, `fasttransfer.study.configuration.Study`
study.db                        what was measured, `fasttransfer.study.records`
weights/<label>.safetensors     trained networks
weights/pretrained.safetensors  weights that were trained elsewhere, where cells copy from them
checkpoints/<label>.safetensors networks in training
means/<task>.npy                the mean image of each task
report/                         the page, its figures and tables
probe/<name>/                   linear heads on frozen features
tensorboard/<label>/            event files, where they were asked for
.lock                           held by the process that trains
"""

from __future__ import annotations

from pathlib import Path

from fasttransfer.core.files import LOCK_FILE, STUDY_FILE
from fasttransfer.study.cells import Cell

WORKING_FOLDERS = ("weights", "checkpoints", "means")
"""The folders that `grid` makes before it trains."""


def study_file(folder: Path) -> Path:
    """Return the path of study.toml."""
    return folder / STUDY_FILE


def records_file(folder: Path) -> Path:
    """Return the path of the SQLite file of the study's records."""
    return folder / "study.db"


def weights_file(folder: Path, cell: Cell) -> Path:
    """Return the path of the trained network of `cell`."""
    return folder / "weights" / f"{cell.label}.safetensors"


def pretrained_file(folder: Path) -> Path:
    """Return the path of the weights that were trained elsewhere."""
    return folder / "weights" / "pretrained.safetensors"


def checkpoint_file(folder: Path, cell: Cell) -> Path:
    """Return the path of the checkpoint of `cell`, which exists while it trains."""
    return folder / "checkpoints" / f"{cell.label}.safetensors"


def mean_file(folder: Path, task: str) -> Path:
    """Return the path of the mean image of `task`, (S, S, 3) float32."""
    return folder / "means" / f"{task}.npy"


def report_folder(folder: Path) -> Path:
    """Return the folder of the report."""
    return folder / "report"


def probe_folder(folder: Path, name: str) -> Path:
    """Return the folder of the probe called `name`."""
    return folder / "probe" / name


def tensorboard_folder(folder: Path, cell: Cell) -> Path:
    """Return the folder of the TensorBoard events of `cell`."""
    return folder / "tensorboard" / cell.label


def lock_file(folder: Path) -> Path:
    """Return the path of the file that is locked by the process that trains the study."""
    return folder / LOCK_FILE
