"""`fasttransfer probe`: parses, trains, writes and prints."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from fasttransfer.cli.console import printer
from fasttransfer.core.errors import InputError

if TYPE_CHECKING:
    from fasttransfer.report.stages import Stages

DEFAULT_CUTS = (0, 1 / 3, 2 / 3, 5 / 6, 1)
"""Shares of the way from the first cut to the last, at which features are read by default."""
EXAMPLES = (1, 2, 5, 10, 25)
"""Default numbers of examples per class, as far as every class has more."""


@dataclass(frozen=True)
class Probe:
    """Train many softmax regressions on the features of a stored network, and show how few images they need.

    Trains one head per cut, number of examples per class, seed, learning rate and weight decay, all in one pass over
    the features, which the cache keeps. Held-out training examples choose learning rate and decay; validation images
    are only reported on. The table, a figure, and every head go to RUN/probe/<name>/.

    For example:

        fasttransfer probe runs/builtin-natural-manmade --network baseA --task B
    """

    study: Annotated[Path, tyro.conf.Positional]
    """Folder of the study, the --out of grid."""
    network: str = "baseA"
    """A network of the study, such as baseA or A3B+; with a seed, such as baseA.s1, if it is not the study's first."""
    task: str | None = None
    """Task of the study to classify, A or B; by default the one that the network was trained on."""
    data: str | None = None
    """Other images to classify, all their classes: builtin, a source or a prepared store."""
    cuts: tuple[str, ...] = ()
    """The stages whose outputs are the features, by number or name; by default five from the first to the last before
    the classifier, closer together towards it. All values are used, nothing is pooled."""
    examples: tuple[str, ...] = ()
    """Training images per class, or all; by default 1 2 5 10 25, as far as every class has more, and all."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One draw of examples and of the order of batches per seed."""
    lrs: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    """Learning rates to choose from."""
    decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """Weight decays to choose from."""
    name: str | None = None
    """Name of the folder in RUN/probe; by default <network>-on-<task>."""

    def run(self, console: Console) -> int:
        from fasttransfer.features.network_features import open_network
        from fasttransfer.probe.sweep import SweepSettings, run_probe
        from fasttransfer.report.probe import probe_table, study_reference, write_probe
        from fasttransfer.report.stages import Stages
        from fasttransfer.study import paths, records

        if self.name is not None and (not self.name or Path(self.name).name != self.name):
            raise InputError(f"--name {self.name}: a name for a folder in {self.study}/probe is needed")

        log = printer(console)
        examples = _parse_examples(self.examples)
        cuts = choose_cuts(self.cuts, Stages.of(records.read_results(self.study).facts))
        settings = SweepSettings(cuts, examples or (None,), self.seeds, self.lrs, self.decays)
        request = open_network(self.study, self.network, task=self.task, data=self.data, log=log)
        if not examples:
            labels = request.images["train"].labels
            fewest = min(int((labels == label).sum()) for label in range(len(request.classes)))
            settings = replace(settings, examples=(*(k for k in EXAMPLES if k < fewest), None))
        results = run_probe(request, settings, log=log)
        reference = study_reference(request)
        folder = paths.probe_folder(self.study, self.name or f"{request.cell.label}-on-{request.task}")
        console.print(probe_table(results, reference))
        write_probe(results, reference, folder, self.command())
        log(f"again: {self.command()}\nwritten: {folder}")
        return 0

    def command(self) -> str:
        """Return the command line of the same probe: every option that is not at its default."""
        words = ["fasttransfer", "probe", str(self.study)]
        for option in fields(self)[1:]:
            value = getattr(self, option.name)
            if value != option.default:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{option.name}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
        return shlex.join(words)


def choose_cuts(words: tuple[str, ...], stages: Stages) -> tuple[int, ...]:
    """Return the cuts that numbers or names of stages stand for; of no words, DEFAULT_CUTS of the way through.

    Raises:
        InputError: the network has no such cut.
    """
    if not words:
        return tuple(sorted({1 + round(share * (stages.cuts - 1)) for share in DEFAULT_CUTS}))
    numbers = {str(n): n for n in range(1, stages.cuts + 1)}
    numbers = {**{stages.name(n): n for n in numbers.values()}, **numbers}
    for word in words:
        if word not in numbers:
            names = f", or by name: {', '.join(stages.names[:-1])}" if stages.names else ""
            raise InputError(f"--cuts {word}: choose among 1 to {stages.cuts}{names}")
    return tuple(numbers[word] for word in words)


def _parse_examples(words: tuple[str, ...]) -> tuple[int | None, ...]:
    """Return numbers of examples, None for all.

    Raises:
        InputError: a word is neither a whole number nor "all".
    """
    for word in words:
        if word != "all" and not (word.isascii() and word.isdigit()):
            raise InputError(f"--examples {word}: whole numbers from 1 are needed, or all")
    return tuple(None if word == "all" else int(word) for word in words)
