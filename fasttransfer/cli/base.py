"""`fasttransfer base`: train the base networks of a study on several devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from fasttransfer.study.configuration import Choices, Feeding


@dataclass(frozen=True)
class Base(Choices):
    """Train only the base networks of a study: started by torchrun, all of its processes train each one together.

    Each process takes its part of every batch, on a GPU of its own or on the CPU, and gradients are averaged: the same
    order of images, the same result but for rounding. grid with the same options finds the networks done and trains
    the rest of the study. The same command again resumes.

    For example, on a machine with eight GPUs:

        torchrun --nproc-per-node 8 -m fasttransfer base --task A --data ILSVRC2012
    """

    task: Literal["A", "B"] | None = None
    """The task to train it on; by default both, one after the other."""
    out: Path | None = None
    """Folder of the study; by default runs/<images>-<split>."""
    feeding: Feeding = field(default_factory=Feeding)

    def run(self, console: Console) -> int:
        from fasttransfer.cli.grid import outcome_printer
        from fasttransfer.training import ddp

        tasks = (self.task,) if self.task else ("A", "B")
        return ddp.train_bases(
            self, self.out, tasks=tasks, feeding=self.feeding, console=console, show=outcome_printer(console)
        )
