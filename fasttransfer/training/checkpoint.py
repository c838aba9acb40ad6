"""Write and read the files of a cell: a checkpoint while it trains, its network when it has ended.

Both are safetensors files with the study and cell they belong to. Readers quarantine a file that is damaged or of
another study, and the cell is trained again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttransfer.core import tensor_files
from fasttransfer.networks.find import describe_network
from fasttransfer.networks.pretrained import Pretrained
from fasttransfer.study import paths
from fasttransfer.study.cells import Cell
from fasttransfer.study.configuration import Study
from fasttransfer.study.records import Evaluation
from fasttransfer.training.messages import Checked, Ended
from fasttransfer.training.step import StageTrainer


@dataclass
class TrainingCell:
    """A cell in training, with the state from which it resumes to the bit.

    Attributes:
        step: steps done; since: those since the last check, over which `loss_sum` runs (float64, no dimensions).
        correct: (validation images,) bool, those that the last check got right; (0,) before the first.
    """

    cell: Cell
    trainee: StageTrainer
    loss_sum: Tensor
    step: int = 0
    since: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    correct: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


def save_checkpoint(folder: Path, study: Study, member: TrainingCell) -> None:
    """Write the checkpoint of a cell into the study's folder.

    Raises:
        InputError: the disk is full or not ours to write.
    """
    correct = {"correct": member.correct.to(torch.uint8)} if len(member.correct) else {}
    about = {"step": member.step, "since": member.since, "evaluations": _plain(member.evaluations)}
    tensors = {"loss_sum": member.loss_sum, **correct, **member.trainee.state(), **member.trainee.optimiser.state}
    tensor_files.save(paths.checkpoint_file(folder, member.cell), tensors, _owner(study, member.cell) | about)


def load_checkpoint(folder: Path, study: Study, member: TrainingCell) -> None:
    """Resume a cell from its checkpoint where there is a sound one of this study."""
    if (loaded := _load(paths.checkpoint_file(folder, member.cell), study, member.cell)) is None:
        return
    tensors, about = loaded
    member.trainee.load(tensors)
    for name, own in member.trainee.optimiser.state.items():
        own.copy_(tensors[name])
    member.loss_sum.copy_(tensors["loss_sum"])
    member.step, member.since, member.evaluations = about["step"], about["since"], list(_evaluations(about))
    member.correct = tensors.get("correct", member.correct).bool()


def save_network(
    folder: Path,
    study: Study,
    end: Ended,
    trained: Mapping[str, Tensor],
    evaluations: Sequence[Evaluation],
    *,
    processes: int,
) -> None:
    """Write the network of a cell that has ended, and remove its checkpoint.

    Args:
        end: how it ended, "done" or "stuck".
        trained: the state of all its stages, by name.
        processes: how many trained it together.

    Raises:
        InputError: the disk is full or not ours to write.
    """
    cell, recipe = end.cell, study.recipe
    about = {
        "state": end.state,
        "step": end.steps,
        "reason": end.reason,
        "evaluations": _plain(evaluations),
        "correct": (end.correct or b"").hex(),
        "network": describe_network(recipe.network),
        "mean": str(paths.mean_file(Path(), cell.mean_of)) if recipe.network.channel_mean is None else "",
        "scale": recipe.pixel_scale,
        "processes": processes,
    }
    tensor_files.save(paths.weights_file(folder, cell), trained, _owner(study, cell) | about)
    paths.checkpoint_file(folder, cell).unlink(missing_ok=True)


def load_network(folder: Path, cell: Cell) -> dict[str, Tensor]:
    """Return the state of the trained network of `cell`, by name.

    Raises:
        FileNotFoundError: it is not trained.
        CorruptFileError: its file is damaged.
    """
    return tensor_files.load(paths.weights_file(folder, cell))[0]


def save_pretrained(folder: Path, weights: Pretrained) -> None:
    """Write the pretrained weights into the study's folder, unless they are there and whole.

    Raises:
        InputError: the disk is full or not ours to write.
    """
    path = paths.pretrained_file(folder)
    with suppress(FileNotFoundError, tensor_files.CorruptFileError):
        if tensor_files.load(path)[1].get("digest") == weights.digest:
            return
    tensor_files.save(path, weights.state, {"name": weights.name, "digest": weights.digest})


def load_pretrained_state(folder: Path) -> dict[str, Tensor]:
    """Return the pretrained weights of the study in `folder`, by name.

    Raises:
        FileNotFoundError: it has none.
        CorruptFileError: their file is damaged.
    """
    return tensor_files.load(paths.pretrained_file(folder))[0]


def load_end(folder: Path, study: Study, cell: Cell) -> tuple[Checked, Ended] | None:
    """Return what `cell` reported when it ended, from its network's file; None where there is no sound one."""
    if (loaded := _load(paths.weights_file(folder, cell), study, cell)) is None:
        return None
    _, about = loaded
    end = Ended(cell, about["state"], about["step"], about["reason"], bytes.fromhex(about["correct"]))
    return Checked(cell, _evaluations(about)), end


def network_stamp(folder: Path, cell: Cell) -> str:
    """Return what tells the network's file from another: size, time of change and checksum; "" where there is none."""
    try:
        return tensor_files.stamp(paths.weights_file(folder, cell))
    except (OSError, tensor_files.CorruptFileError):
        return ""


def checkpoint_step(folder: Path, cell: Cell) -> int | None:
    """Return how many steps the checkpoint of `cell` has behind it, unverified; None where there is none."""
    try:
        return int(tensor_files.read_about(paths.checkpoint_file(folder, cell))["step"])
    except (FileNotFoundError, tensor_files.CorruptFileError, KeyError):
        return None


def _load(path: Path, study: Study, cell: Cell) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    try:
        tensors, about = tensor_files.load(path)
        if about.items() >= _owner(study, cell).items():
            return tensors, about
    except FileNotFoundError:
        return None
    except tensor_files.CorruptFileError:
        pass
    tensor_files.quarantine(path)
    return None


def _owner(study: Study, cell: Cell) -> dict[str, str]:
    return {"cell": cell.label, "study": study.digest()}


def _plain(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    return [asdict(each) for each in evaluations]


def _evaluations(about: Mapping[str, Any]) -> tuple[Evaluation, ...]:
    return tuple(Evaluation(**each) for each in about["evaluations"])
