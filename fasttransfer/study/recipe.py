"""Recipes: how one network is trained. The package has three; users write others as TOML files."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttransfer.core.errors import InputError
from fasttransfer.networks.geometry import GEOMETRIES, Geometry

_RECIPES = Path(__file__).with_name("recipes")
_CHOICES = {"init": ("caffe", "he"), "outputs": ("task", "all"), "schedule": ("step", "cosine")}


@dataclass(frozen=True)
class Recipe:
    """The settings that one network is trained with.

    Attributes:
        geometry: sizes of the network.
        batch: images per step.
        steps, epochs: length of training; exactly one of them is set.
        checks: number of validations, evenly spread over training, the last at its end.
        lr: learning rate of the weights.
        schedule: "step" (times `lr_factor` after each of the shares `lr_drops` of the run) or "cosine" (half a cosine
            from `lr` to 0); warmup: share of the run over which the learning rate first rises linearly from 0.
        bias_lr, bias_decay: factors on the learning rate and weight decay of biases.
        dropout: probability of dropping a value at the entrance of stages 7 and 8.
        init: "caffe" or "he", see `fasttransfer.networks.caffenet.draw_weights`.
        scale: factor on pixel differences (0..255 minus mean).
        first_init: factor on the initial weights of a base's first layer: the smaller they are, the sooner training
            forgets them.
        outputs: "task" (one output per class of the task) or "all" (one per class of the study, as in the paper).
        give_up: share of the steps after which training ends for a network that was at chance in every check so far,
            see `fasttransfer.study.chance`; 1 trains every network to the end.
    """

    name: str
    geometry: Geometry
    batch: int
    checks: int
    lr: float
    lr_drops: tuple[float, ...]
    lr_factor: float
    momentum: float
    weight_decay: float
    bias_lr: float
    bias_decay: float
    dropout: float
    init: str
    scale: float
    outputs: str
    steps: int | None = None
    epochs: float | None = None
    give_up: float = 0.5
    schedule: str = "step"
    warmup: float = 0.0
    first_init: float = 1.0

    def __post_init__(self) -> None:
        def need(is_met: bool, message: str) -> None:
            if not is_met:
                raise InputError(f"recipe {self.name}: {message}")

        need((self.steps is None) != (self.epochs is None), "give either steps or epochs, not both")
        need(self.epochs is None or self.epochs > 0, f"epochs is {self.epochs}, more than 0 is needed")
        for name in ("steps", "batch", "checks"):
            value = getattr(self, name)
            need(value is None or value >= 1, f"{name} is {value}, at least 1 is needed")
        for name in ("lr", "first_init"):
            value = getattr(self, name)
            need(value > 0 and math.isfinite(value), f"{name} is {value}, a positive number is needed")
        for name in ("dropout", "momentum"):
            value = getattr(self, name)
            need(0 <= value < 1, f"{name} is {value}, 0 <= {name} < 1 is needed")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            need(value in allowed, f"{name} is {value!r}, choose one of {', '.join(allowed)}")
        need(
            self.schedule == "step" or not self.lr_drops,
            "lr_drops belong to the schedule step: leave them empty, or choose it",
        )
        need(0 <= self.warmup < 1, f"warmup is {self.warmup}, a share of the run from 0 and below 1 is needed")
        need(all(0 < d < 1 for d in self.lr_drops), "lr_drops are shares of the run, between 0 and 1")
        need(0 < self.give_up <= 1, f"give_up is {self.give_up}, a share of the run up to 1 is needed")

    def steps_for(self, images: int) -> int:
        """Return the number of training steps on a task of `images` training images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * images / self.batch))

    def outputs_for(self, task: str, classes: Mapping[str, Sequence[str]]) -> int:
        """Return the width of the last layer of networks on `task`; `classes` are those of each task."""
        return len(classes[task]) if self.outputs == "task" else sum(map(len, classes.values()))

    def check_steps(self, steps: int) -> tuple[int, ...]:
        """Return the steps after which the network is validated, rising, the last one `steps`."""
        checks = min(self.checks, steps)
        return tuple(round(i * steps / checks) for i in range(1, checks + 1))

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of training step `step`, counted from 0, of `steps`."""
        warmup = round(self.warmup * steps)
        if step < warmup:
            return self.lr * (step + 1) / (warmup + 1)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
        return self.lr * self.lr_factor ** sum(step >= round(d * steps) for d in self.lr_drops)


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes in the package."""
    return tuple(sorted(path.stem for path in _RECIPES.glob("*.toml")))


def default_recipe(layout: str) -> str:
    """Return the name of the default recipe for images in this layout (see `fasttransfer.pipelines.layouts`)."""
    return "caffe" if layout == "ilsvrc12" else "mini"


def find_recipes(store: int) -> tuple[str, ...]:
    """Return the names of the recipes in the package whose networks take images of a store of this size."""
    return tuple(name for name in recipe_names() if load_recipe(name).geometry.store == store)


def load_recipe(name: str) -> Recipe:
    """Return the package's recipe called `name`, or the one in the TOML file at the path `name`.

    In a file, `geometry` may be a table with the fields of `fasttransfer.networks.geometry.Geometry`.

    Raises:
        InputError: there is no such recipe, or it does not make sense.
    """
    if name in recipe_names():
        return parse_recipe(read_toml(_RECIPES / f"{name}.toml", "recipe"), name)
    path = Path(name)
    if path.suffix != ".toml":
        raise InputError(f"recipe {name!r} is unknown: choose one of {', '.join(recipe_names())}, or a .toml file")
    return parse_recipe(read_toml(path, "recipe"), str(path))


def parse_recipe(table: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe in the table of a TOML file; `where` names the file in errors."""
    table = dict(table)
    geometry = table.get("geometry")
    if isinstance(geometry, Mapping):
        table["geometry"] = build_from_table(Geometry, geometry, f"{where}: geometry")
    elif geometry in GEOMETRIES:
        table["geometry"] = GEOMETRIES[geometry]
    else:
        raise InputError(
            f"{where}: geometry {geometry!r} is unknown: choose one of {', '.join(GEOMETRIES)}, or give a table"
        )
    return build_from_table(Recipe, table, where)


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """Return the content of a TOML file; `kind` names in errors what it should hold.

    Raises:
        InputError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such {kind} file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from error


def build_from_table(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """Return a dataclass of type `kind` made from a TOML table: lists become tuples, whole numbers become floats.

    Raises:
        InputError: a name is unknown or missing, or a value has another type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := table.keys() - fields.keys():
        raise InputError(f"{where}: {min(unknown)!r} is not known: choose among {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        if name not in table:
            if field.default is dataclasses.MISSING:
                raise InputError(f"{where}: {name!r} is missing")
            continue
        annotation, value = str(field.type), table[name]
        value = tuple(value) if isinstance(value, list) else value
        value = float(value) if annotation.startswith("float") and type(value) is int else value
        for type_ in (str, int, float, tuple):
            if annotation.startswith(type_.__name__) and (not isinstance(value, type_) or isinstance(value, bool)):
                raise InputError(f"{where}: {name} is {value!r}, {annotation} is needed")
        values[name] = value
    return kind(**values)
