"""Write a study's validation checks as TensorBoard event files, one folder per network.

Records and report do not need them: they can be deleted at any time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fasttransfer.core.errors import InputError
from fasttransfer.core.text import printable
from fasttransfer.study import paths
from fasttransfer.study.cells import Cell
from fasttransfer.study.records import Evaluation

Listener = Callable[[Cell, Sequence[Evaluation]], None]


def require_events(folder: Path) -> None:
    """Check that TensorBoard is installed and can write into the folder of a study.

    Raises:
        InputError: it is not, or the name of the folder is not UTF-8.
    """
    _import_writer()
    if printable(str(folder)) != str(folder):
        raise InputError(f"--tensorboard: cannot write into {folder}, whose name is not UTF-8: choose another --out")


@contextmanager
def write_events(folder: Path) -> Iterator[Listener]:
    """Yield a function that writes the checks of a cell to `folder`/tensorboard/<label of the cell>.

    A resumed cell reports all its checks again: its events are written anew, so that none is there twice.
    """
    make_writer = _import_writer()
    writers: dict[Cell, Any] = {}
    last: dict[Cell, int] = {}

    def write(cell: Cell, evaluations: Sequence[Evaluation]) -> None:
        if cell not in writers:
            events = paths.tensorboard_folder(folder, cell)
            shutil.rmtree(events, ignore_errors=True)
            writers[cell] = make_writer(str(events))
        for check in evaluations:
            if check.step > last.get(cell, 0):
                values = {"train/loss": check.train_loss, "val/loss": check.val_loss, "val/top1": check.val_top1}
                for name, value in values.items():
                    if value is not None:
                        writers[cell].add_scalar(name, value, check.step)
                last[cell] = check.step
        writers[cell].flush()

    try:
        yield write
    finally:
        for writer in writers.values():
            writer.close()


def _import_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "--tensorboard needs the package tensorboard: install it with pip install 'fasttransfer[tensorboard]'"
        ) from error
    return SummaryWriter
