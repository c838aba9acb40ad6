"""`fasttransfer grid`: train a study and show its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fasttransfer.cli.console import printer
from fasttransfer.core import interrupts
from fasttransfer.study.configuration import Choices, Feeding

if TYPE_CHECKING:
    from fasttransfer.study.cells import Cell
    from fasttransfer.study.records import StudyResults


@dataclass(frozen=True)
class Grid(Choices):
    """Train the networks of the study and show how transferable each layer is.

    Base networks are trained on tasks A and B; for each target task and n, networks with the first n layers copied
    from a base (selffer: from the same task, transfer: from the other), frozen or fine-tuned (+), and the control with
    n random, frozen layers. The same command again resumes an interrupted study, or does nothing when it is done.

    For example, a study of small real images that fits an afternoon:

        fasttransfer grid --split natural-manmade --data tiny-imagenet-200 --classes 40 --epochs 20
    """

    out: Path | None = None
    """Folder of the study; by default runs/<images>-<split>."""
    tensorboard: bool = False
    """Write validation checks as TensorBoard event files as well, into <out>/tensorboard."""
    dry_run: bool = False
    """Only print the networks, what depends on what, and the time, memory and disk that what is left will take."""
    feeding: Feeding = field(default_factory=Feeding)

    def run(self, console: Console) -> int:
        from fasttransfer.training import grid, time_estimate

        if self.dry_run:
            time_estimate.dry_run(self, self.out, feeding=self.feeding, console=console, tensorboard=self.tensorboard)
            return 0
        done = grid.run(
            self,
            self.out,
            feeding=self.feeding,
            console=console,
            tensorboard=self.tensorboard,
            show=outcome_printer(console),
        )
        return 0 if done else interrupts.exit_code()


def outcome_printer(console: Console) -> Callable[[StudyResults, Sequence[Cell]], None]:
    """Return a function that writes the report of a study and prints the results of the cells trained just now.

    It prints the table where they are the whole study, else the top-1 of each.
    """
    from fasttransfer.report import table, write_report

    log = printer(console)

    def show(results: StudyResults, trained: Sequence[Cell]) -> None:
        if len(trained) == len(results.results):
            console.print(table(results))
        else:
            now = {(cell.name, cell.seed) for cell in trained}
            for result in results.results:
                if result.trained and (result.name, result.seed) in now:
                    log(f"{result.name}.s{result.seed}: {100 * (result.last_top1 or 0):.1f} % top-1")
        log(f"report: {write_report(results, results.folder)}")

    return show
