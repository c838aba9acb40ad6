"""The published results of Yosinski et al. 2014, typed, and in the form of a study.

All code that reads a study (means, intervals, figures, advice) reads the paper through `load_results`, so that the
paper's numbers check it.

`yosinski2014.csv` holds 148 networks, read from the training logs that the authors published: the last validation
check and the mean of the ten best, which the paper plots. The checks in between are not in it.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from fasttransfer.core.errors import InputError
from fasttransfer.core.toml import to_plain
from fasttransfer.study import records
from fasttransfer.study.cells import RANDOM, Cell
from fasttransfer.study.chance import LOSS_MARGIN
from fasttransfer.study.recipe import load_recipe
from fasttransfer.study.records import Evaluation, Result, StudyResults

Which = Literal["random", "natural-manmade", "full", "reduced"]

SOURCE = (
    "Yosinski, Clune, Bengio, Lipson, How transferable are features in deep neural networks?, NIPS 2014, "
    "arXiv:1411.1792: from the training logs published with it"
)
VAL_IMAGES_PER_CLASS = 50
IMAGES_PER_SECOND = (145, 172, 216, 254, 308, 373, 386, 393)
"""Training speed on a K20 with the first 0 to 7 layers frozen, from the logs."""

_LOW_TOP1 = 0.05  # a network of 1000 classes below this has hardly learned anything


@dataclass(frozen=True)
class PaperNetwork:
    """One network of the paper.

    Attributes:
        net: its name in the authors' logs.
        study: random-0 to random-3, natural-manmade, full or reduced.
        treatment: "base" or one of `fasttransfer.study.cells.TREATMENTS`.
        source, target: tasks; the source of a base is None, that of a random control "R".
        n: layers copied, 0 for a base.
        iterations: training steps of 256 images.
        top1, best10: top-1 of the last validation check and mean of the ten best, in [0, 1].
        loss: validation loss of the last check, mean cross-entropy in nats.
        per_class: training images per class, at most, of the reduced studies.
    """

    net: str
    study: str
    treatment: str
    source: str | None
    target: str
    n: int
    iterations: int
    top1: float
    best10: float
    loss: float
    per_class: int | None

    @property
    def classes(self) -> int:
        """Return the number of classes of its task."""
        if self.study == "natural-manmade":
            return {"A": 449, "B": 551}[self.target]
        return 500 if self.study.startswith("random-") else 1000

    @property
    def is_at_chance(self) -> bool:
        """True if it ended at the loss of an even guess: its training failed, though every number stayed finite."""
        return abs(self.loss - math.log(self.classes)) < LOSS_MARGIN

    @property
    def flag(self) -> str:
        """Return in words what is wrong with it; "" for a network that learned its task."""
        if self.is_at_chance:
            return f"no better than chance: loss {self.loss:.3f}, an even guess has {math.log(self.classes):.3f}"
        if self.best10 < _LOW_TOP1:
            return (
                f"hardly better than chance: top-1 {100 * self.best10:.1f} %, guessing has {100 / self.classes:.1f} %"
            )
        return ""


@cache
def load_networks() -> tuple[PaperNetwork, ...]:
    """Return the 148 networks, in the order of the file."""
    text = (resources.files("fasttransfer.study") / "yosinski2014.csv").read_text(encoding="utf-8")
    return tuple(_parse_network(row) for row in csv.DictReader(text.splitlines()))


def load_results(which: Which) -> StudyResults:
    """Return published results in the form of a study's.

    * `random`: the four random splits; a result's seed is the number of its split. Bases, frozen transfers both ways,
      selffers on A only, fine-tuned networks of splits 0 and 1 only: no others were published.
    * `natural-manmade`: A = natural, B = man-made; bases and frozen transfers both ways.
    * `full`: the network of all 1000 classes and the random controls, target "ilsvrc12".
    * `reduced`: bases only, each trained on the first K images of each of the 1000 classes; every K is a target,
      `facts["per_class"]` says which.

    A result has one check, the last, and the published mean of the ten best. Networks that failed are included, as
    "done" like in the authors' logs, with `reason` saying what is wrong.

    Raises:
        InputError: there is no such part.
    """
    if which not in get_args(Which):
        parts = ", ".join(f"paper:{part}" for part in get_args(Which))
        raise InputError(f"{f'paper:{which}'.rstrip(':')}: choose one of {parts}")
    nets = [net for net in load_networks() if net.study == which or net.study.startswith(f"{which}-")]
    classes = {net.target: net.classes for net in nets}
    facts: dict[str, Any] = {
        "source": SOURCE,
        "class_counts": classes,
        "val_pictures": {task: count * VAL_IMAGES_PER_CLASS for task, count in classes.items()},
        "synthetic": False,
        "images_per_second": list(IMAGES_PER_SECOND),
    }
    if which == "random":
        facts["seeds_are"] = "random splits"
    if which == "reduced":
        facts["per_class"] = {net.target: net.per_class for net in nets}
    results = tuple(_result(net) for net in nets)
    seeds = sorted({result.seed for result in results})
    split = {"random": "random:0 to random:3", "natural-manmade": "natural-manmade"}.get(which, "none")
    study = {"data": "ILSVRC2012", "split": split, "seeds": seeds, "recipe": _recipe(which)}
    return StudyResults(Path(f"paper:{which}"), study, facts, results, {}, ())


def matching_part(study: StudyResults) -> StudyResults:
    """Return the part of the paper to compare `study` with: natural/man-made for the same split, else random."""
    return load_results("natural-manmade" if study.study.get("split") == "natural-manmade" else "random")


def _parse_network(row: Mapping[str, str]) -> PaperNetwork:
    net, treatment = row["net"], row["treatment"]
    return PaperNetwork(
        net,
        row["study"],
        treatment,
        RANDOM if treatment == "random" else row["source"] or None,
        row["target"],
        int(row["n"] or 0),
        int(row["iterations"]),
        float(row["val_top1"]),
        float(row["val_top1_best10"]),
        float(row["val_loss"]),
        int(net.removeprefix("reduced-")) if row["study"] == "reduced" else None,
    )


def _result(net: PaperNetwork) -> Result:
    seed = int(net.study.removeprefix("random-")) if net.study.startswith("random-") else 0
    if net.per_class is not None:
        name = f"base{net.per_class}"
    elif net.target == "ilsvrc12":
        name = f"R{net.n}" if net.n else "base"
    else:
        name = Cell(seed, net.target, net.treatment, net.n).name
    last = Evaluation(net.iterations, None, net.loss, net.top1)
    return Result(
        name, net.treatment, net.target, net.source, net.n, seed, "done", net.iterations, (last,), net.flag, net.best10
    )


def _recipe(which: Which) -> dict[str, Any]:
    recipe = load_recipe("caffe")
    if which == "reduced":  # 200,000 steps from a learning rate of 0.0125, times 0.1 every 64,000
        drops = tuple(64_000 * i / 200_000 for i in (1, 2, 3))
        recipe = dataclasses.replace(recipe, steps=200_000, checks=200, lr=0.0125, lr_drops=drops)
    return dict(to_plain(dataclasses.asdict(recipe)))


def read_study_or_paper(name: str) -> StudyResults:
    """Return the study in folder `name`, or published results.

    Args:
        name: a folder; or paper:random, paper:natural-manmade, paper:full or paper:reduced.

    Raises:
        InputError: there is no such study, or no such part of the paper.
    """
    prefix, _, part = name.partition(":")
    if prefix == "paper" and (part or not Path(name).exists()):
        return load_results(part)  # type: ignore[arg-type]  # load_results checks it
    return records.read_results(Path(name))
