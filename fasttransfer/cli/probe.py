"""`fasttransfer probe`: parse, train, write, print."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text

from fasttransfer.core.errors import InputError

EXAMPLES = (1, 2, 5, 10, 25)
"""Of each class, where nobody says, and as far as there are more."""


@dataclass(frozen=True)
class Probe:
    """Train many softmax regressions on the features of a stored network, and show how few images they need.

    For every cut, number of examples of each class and seed, a head for each rate and decay, all in one pass over the
    features, which are kept in the cache. Rate and decay are chosen on held-out training examples; validation images
    are only reported on. The table, a figure, and every head go to RUN/probe/<name>/.

    For example:

        fasttransfer probe runs/builtin-natural-manmade --network baseA --task B
    """

    study: Annotated[Path, tyro.conf.Positional]
    """Folder of the study, the --out of grid."""
    network: str = "baseA"
    """A network of it, as baseA or A3B+; with a seed, as baseA.s1, where it is not the study's first."""
    task: str | None = None
    """The study's task to classify, A or B; by default the one that the network was trained on."""
    data: str | None = None
    """Other images to classify, all their classes: builtin, a source or a prepared store."""
    cuts: tuple[int, ...] = (1, 3, 5, 6, 7)
    """The stages whose outputs are the features; all values, nothing is pooled."""
    examples: tuple[str, ...] = ()
    """Training images of each class, or all; by default 1 2 5 10 25, as far as there are as many, and all."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One draw of examples and of the order of batches for each."""
    lrs: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    """Learning rates to choose from."""
    decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """Weight decays to choose from."""
    name: str | None = None
    """Of the folder in RUN/probe; by default <network>-on-<task>."""

    def run(self, console: Console) -> int:
        from fasttransfer.features.network_features import open_network
        from fasttransfer.probe.sweep import SweepSettings, run_probe
        from fasttransfer.report.probe import files
        from fasttransfer.report.probe.beside import study_reference
        from fasttransfer.report.probe.table import table
        from fasttransfer.study import paths

        if self.name is not None and (not self.name or Path(self.name).name != self.name):
            raise InputError(f"--name {self.name}: a name for a folder in {self.study}/probe is needed")

        def log(text: str) -> None:
            console.print(Text(text), soft_wrap=True)

        given = _numbers(self.examples)
        swept = SweepSettings(self.cuts, given or (None,), self.seeds, self.lrs, self.decays)
        asked = open_network(self.study, self.network, task=self.task, data=self.data, log=log)
        if not given:
            few = min(int((asked.images["train"].labels == label).sum()) for label in range(len(asked.classes)))
            swept = SweepSettings(
                self.cuts, (*(k for k in EXAMPLES if k < few), None), self.seeds, self.lrs, self.decays
            )
        probed = run_probe(asked, swept, log=log)
        around = study_reference(asked)
        folder = paths.probe_folder(self.study, self.name or f"{asked.cell.label}-on-{asked.task}")
        files.write(probed, around, folder, self.command())
        console.print(table(probed, around))
        console.print(Text(f"again: {self.command()}\nwritten: {folder}"), soft_wrap=True)
        return 0

    def command(self) -> str:
        """What to type for the same again: every option that is not at its default."""
        words = ["fasttransfer", "probe", str(self.study)]
        for option in fields(self)[1:]:
            value = getattr(self, option.name)
            if value != option.default:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{option.name}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
        return shlex.join(words)


def _numbers(examples: tuple[str, ...]) -> tuple[int | None, ...]:
    """Numbers of examples, None for all.

    Raises:
        InputError: something else.
    """
    found: list[int | None] = []
    for each in examples:
        if each != "all" and not (each.isascii() and each.isdigit()):
            raise InputError(f"--examples {each}: whole numbers from 1 are needed, or all")
        found.append(None if each == "all" else int(each))
    return tuple(found)
