"""`Study`: the frozen dataclass that says everything about a run, and the recipes it is made from.

`Choices` is what somebody asked for; `Study` is what that came to: every value settled, so that the file it is
written to (study.toml) trains the same networks again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w
import xxhash

from fasttransfer import cells
from fasttransfer.errors import InputError
from fasttransfer.files import replace_file
from fasttransfer.geometry import GEOMETRIES, Geometry
from fasttransfer.pipelines import views

BUILTIN = "builtin"
INITS = ("caffe", "he")
OUTPUTS = ("task", "all")
SCHEDULES = ("step", "cosine")
VERSION = 2
"""Of the networks that a study has: 1 had no base+."""


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        geometry: sizes of the network.
        batch: pictures a step.
        steps, epochs: length of training; exactly one of them is set.
        checks: validations, evenly spread over training, the last at its end.
        lr: learning rate of the weights.
        schedule: "step" (times `lr_factor` after each of the shares `lr_drops` of the run) or "cosine" (half a cosine
            from `lr` to 0); warmup: share of the run over which the learning rate first rises linearly from 0.
        bias_lr, bias_decay: factors on rate and weight decay for biases.
        dropout: probability of dropping a value at the entrance of stages 7 and 8.
        init: "caffe" or "he", see `fasttransfer.net.initial_weights`.
        scale: what pixel differences (0..255 minus mean) are multiplied by.
        first_init: factor on the initial weights of a base's first layer: the smaller they are, the sooner they are
            forgotten.
        outputs: "task" (one output a class of the task) or "all" (one a class of the study, as the paper did).
        give_up: share of the steps after which a network that was at chance in every check so far is trained no more,
            see `fasttransfer.chance`; 1 trains every network to the end.
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
        def need(good: bool, what: str) -> None:
            if not good:
                raise InputError(f"recipe {self.name}: {what}")

        need((self.steps is None) != (self.epochs is None), "give either steps or epochs, not both")
        need(self.steps is None or self.steps >= 1, f"steps is {self.steps}, at least 1 is needed")
        need(self.epochs is None or self.epochs > 0, f"epochs is {self.epochs}, more than 0 is needed")
        need(self.batch >= 1, f"batch is {self.batch}, at least 1 is needed")
        need(self.checks >= 1, f"checks is {self.checks}, at least 1 is needed")
        need(self.lr > 0 and math.isfinite(self.lr), f"lr is {self.lr}, a positive number is needed")
        need(0 <= self.dropout < 1, f"dropout is {self.dropout}, 0 <= dropout < 1 is needed")
        need(0 <= self.momentum < 1, f"momentum is {self.momentum}, 0 <= momentum < 1 is needed")
        need(
            self.first_init > 0 and math.isfinite(self.first_init),
            f"first_init is {self.first_init}, a positive number is needed",
        )
        need(self.init in INITS, f"init is {self.init!r}, choose one of {', '.join(INITS)}")
        need(self.outputs in OUTPUTS, f"outputs is {self.outputs!r}, choose one of {', '.join(OUTPUTS)}")
        need(self.schedule in SCHEDULES, f"schedule is {self.schedule!r}, choose one of {', '.join(SCHEDULES)}")
        need(
            self.schedule == "step" or not self.lr_drops,
            "lr_drops belong to the schedule step: leave them empty, or choose it",
        )
        need(0 <= self.warmup < 1, f"warmup is {self.warmup}, a share of the run from 0 and below 1 is needed")
        need(all(0 < d < 1 for d in self.lr_drops), "lr_drops are shares of the run, between 0 and 1")
        need(0 < self.give_up <= 1, f"give_up is {self.give_up}, a share of the run up to 1 is needed")

    def steps_for(self, pictures: int) -> int:
        """Training steps on a task of `pictures` training pictures."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * pictures / self.batch))

    def outputs_for(self, task: str, classes: Mapping[str, Sequence[str]]) -> int:
        """Width of the last layer of networks on `task`; `classes` are those of each task."""
        return len(classes[task]) if self.outputs == "task" else sum(map(len, classes.values()))

    def check_steps(self, steps: int) -> tuple[int, ...]:
        """The steps after which the network is validated, rising, the last one `steps`."""
        checks = min(self.checks, steps)
        return tuple(round(i * steps / checks) for i in range(1, checks + 1))

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of training step `step`, counted from 0, of `steps`."""
        rising = round(self.warmup * steps)
        if step < rising:
            return self.lr * (step + 1) / (rising + 1)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2
        return self.lr * self.lr_factor ** sum(step >= round(d * steps) for d in self.lr_drops)


def recipe_names() -> tuple[str, ...]:
    """The recipes in the package."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in _recipe_folder().iterdir() if f.name.endswith(".toml")))


def default_recipe(layout: str) -> str:
    """The recipe for pictures in this layout (see `fasttransfer.pipelines.layouts`) when nobody names one."""
    return "caffe" if layout == "ilsvrc12" else "mini"


def recipes_for(store: int) -> tuple[str, ...]:
    """The recipes in the package whose networks take pictures of a store of this size."""
    return tuple(name for name in recipe_names() if load_recipe(name).geometry.store == store)


def load_recipe(name: str) -> Recipe:
    """A recipe of the package by its name, or one from a TOML file of the same form.

    In a file, `geometry` may be a table with the fields of `fasttransfer.geometry.Geometry`.

    Raises:
        InputError: no such recipe, or one that does not make sense.
    """
    if name in recipe_names():
        return recipe_from(tomllib.loads((_recipe_folder() / f"{name}.toml").read_text(encoding="utf-8")), name)
    path = Path(name)
    if path.suffix != ".toml":
        raise InputError(f"recipe {name!r} is unknown: choose one of {', '.join(recipe_names())}, or a .toml file")
    return recipe_from(read_toml(path, "recipe"), str(path))


def recipe_from(table: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from the table of a TOML file; `where` names the file in errors."""
    table = dict(table)
    geometry = table.get("geometry")
    if isinstance(geometry, Mapping):
        table["geometry"] = _build(Geometry, geometry, f"{where}: geometry")
    elif geometry in GEOMETRIES:
        table["geometry"] = GEOMETRIES[geometry]
    else:
        raise InputError(
            f"{where}: geometry {geometry!r} is unknown: choose one of {', '.join(GEOMETRIES)}, or give a table"
        )
    return _build(Recipe, table, where)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file that a user named; `what` says what it should hold.

    Raises:
        InputError: it cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what} file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from error


@dataclass(frozen=True)
class Choices:
    """What was asked for. None: decide by the pictures or the machine."""

    split: str = "natural-manmade"
    """natural-manmade, random:SEED (the paper's halves are random:0 to random:3) or a TOML file with lists A and B."""
    data: str = BUILTIN
    """Pictures: builtin, a prepared store, or a source, which is prepared on first use: a folder or uncompressed tar in
    ImageFolder's, Tiny-ImageNet's or ILSVRC12's layout, ILSVRC12's archives, or WebDataset's shards."""
    layers: tuple[int, ...] | None = None
    """How many layers to copy: numbers from 1 to 7; by default all, of the built-in images 1 3 5 7."""
    treatments: tuple[str, ...] = cells.TREATMENTS
    """Which networks to train beside the bases: selffer, selffer+, transfer, transfer+, random; and random-he, the
    random control from He's initial values, where the recipe has smaller ones."""
    targets: tuple[str, ...] = cells.TASKS
    """Tasks to train them on: A, B."""
    seeds: tuple[int, ...] | None = None
    """One whole grid for each seed; by default 0, of the built-in images 0 and 1."""
    classes: int | None = None
    """Use this many classes of each task, chosen in a seeded order; by default all, of the built-in images 6."""
    per_class: int | None = None
    """Use the first so many training pictures of each class."""
    views: int | None = None
    """Show training pictures in a fixed list of views instead of any crop: 1 (the centre), 2 (with its mirror) or 10
    (corners and centre with mirrors). An approximation, whose frozen features are kept for the next study."""
    recipe: str | None = None
    """caffe (the paper's, to the letter), fast, mini (small pictures) or a TOML file; by default caffe for ILSVRC12 and
    stores of its size, else mini."""
    epochs: float | None = None
    """Length of training in passes over the task's pictures, instead of the recipe's."""
    steps: int | None = None
    """Length of training in steps, instead of the recipe's."""
    batch: int | None = None
    """Pictures a step."""
    lr: float | None = None
    """Learning rate."""
    dropout: float | None = None
    """Probability of dropping a value at the entrance of stages 7 and 8; by default the recipe's."""
    precision: str | None = None
    """fp32 or bf16; by default bf16 where the hardware has it, but fp32 for small networks on a CPU."""
    device: str | None = None
    """cpu or cuda; by default a GPU where there is one."""
    bad_pictures: str = "fail"
    """What to do about pictures that cannot be decoded: fail, or skip them and say so."""

    def __post_init__(self) -> None:
        def need(good: bool, what: str) -> None:
            if not good:
                raise InputError(what)

        for option, values, allowed in (
            ("--layers", self.layers or (), cells.LAYERS),
            ("--treatments", self.treatments, cells.ALL_TREATMENTS),
            ("--targets", self.targets, cells.TASKS),
        ):
            for value in values:
                shown = f"{allowed[0]} to {allowed[-1]}" if option == "--layers" else ", ".join(map(str, allowed))
                need(value in allowed, f"{option} {value}: choose among {shown}")
            need(len(set(values)) == len(values), f"{option}: a value is given twice")
        need(len(self.targets) > 0, "--targets: name at least one of A, B")
        seeds = (0,) if self.seeds is None else self.seeds
        need(len(seeds) > 0, "--seeds: name at least one")
        need(len(set(seeds)) == len(seeds), "--seeds: a value is given twice")
        need(all(s >= 0 for s in seeds), "--seeds: whole numbers from 0 are needed")
        need(
            self.classes is None or self.classes >= 2,
            f"--classes {self.classes}: at least 2 a task are needed",
        )
        need(
            self.per_class is None or self.per_class >= 1,
            f"--per-class {self.per_class}: at least 1 is needed",
        )
        need(
            self.views is None or self.views in views.COUNTS,
            f"--views {self.views}: choose 1 (the centre), 2 (with its mirror) or 10 (corners and centre with mirrors)",
        )
        need(
            self.dropout is None or 0 <= self.dropout < 1,
            f"--dropout {self.dropout}: a probability from 0 and below 1 is needed",
        )
        need(self.epochs is None or self.steps is None, "--epochs and --steps: give one of them")
        need(self.precision in (None, "fp32", "bf16"), f"--precision {self.precision}: choose fp32 or bf16")

    def settled_recipe(self, fallback: str) -> Recipe:
        """The recipe with the changes asked for; `fallback` names the one to use where none was.

        Raises:
            InputError: no such recipe, or one under which a treatment means nothing.
        """
        recipe = load_recipe(self.recipe or fallback)
        if self.steps is not None or self.epochs is not None:
            recipe = dataclasses.replace(recipe, steps=self.steps, epochs=self.epochs)
        if recipe.init == "he" and cells.RANDOM_HE in self.treatments:
            raise InputError(
                f"--treatments {cells.RANDOM_HE}: recipe {recipe.name} starts from He's values already, so that random "
                "is the same network: leave it out, or choose a recipe whose init is caffe"
            )
        changes = {name: v for name in ("batch", "lr", "dropout") if (v := getattr(self, name)) is not None}
        return dataclasses.replace(recipe, **changes)


@dataclass(frozen=True)
class Feeding:
    """What was asked for about this machine. None of it is part of the study, but a source that became JPEGs is not
    quite the same pictures as one that became pixels."""

    feed: Literal["memory", "dali"] | None = None
    """How pictures are fed: memory (raw stores) or dali (jpeg stores); by default as the store is. A source becomes
    such a store, by default a raw one where the disk has room."""
    hw_share: float | None = None
    """Share of the JPEGs, from 0 to 1, that a GPU's hardware decoder takes from its cores, where it has one; by default
    DALI's own, 0.65."""
    engine: Literal["local", "ray"] = "local"
    """Who trains: local (worker processes of this machine) or ray (workers of the Ray cluster that RAY_ADDRESS names,
    else of one on this machine; docs/clusters.md)."""
    features: Literal["auto", "cache", "live"] = "auto"
    """Where frozen features come from in a study with --views: cache (computed once and kept), live (computed in every
    step) or auto (kept where reading is faster and the disk has room). The results are the same."""

    def __post_init__(self) -> None:
        if self.engine not in ("local", "ray"):
            raise InputError(f"--engine {self.engine}: choose local or ray")
        if self.feed not in (None, "memory", "dali"):
            raise InputError(f"--feed {self.feed}: choose memory or dali")
        if self.features not in ("auto", "cache", "live"):
            raise InputError(f"--features {self.features}: choose auto, cache or live")
        if self.hw_share is not None and not 0 <= self.hw_share <= 1:
            raise InputError(f"--hw-share {self.hw_share}: a share from 0 to 1 is needed")


@dataclass(frozen=True)
class Study:
    """Everything that determines the weights and records of a run.

    Attributes:
        data: "builtin" or the absolute path of the source or store; pictures: digest of the prepared pictures.
        split: what was asked for; tasks: digest of the two lists of classes that it came to.
        layers, treatments, targets, seeds: which networks, see `fasttransfer.cells.study_cells`.
        classes, per_class: limits that were set on the pictures.
        precision: "fp32" or "bf16"; device: "cpu" or "cuda".
        threads: CPU threads a network is trained with (sums are rounded in an order that depends on it).
        views: length of the list of views that training pictures are shown in; None: any crop and its mirror.
        version: see `VERSION`.
    """

    data: str
    pictures: str
    split: str
    tasks: str
    layers: tuple[int, ...]
    treatments: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    bad_pictures: str
    precision: str
    device: str
    threads: int
    recipe: Recipe
    classes: int | None = None
    per_class: int | None = None
    views: int | None = None
    version: int = VERSION

    def cells(self) -> tuple[cells.Cell, ...]:
        """Every network of the study."""
        return cells.study_cells(self.targets, self.treatments, self.layers, self.seeds)

    def digest(self) -> str:
        """A digest of every value that is not at its default: equal for equal studies, written into what they train.

        A study from before there was some value keeps its digest, for it was trained with what is now the default.
        """
        return xxhash.xxh3_128_hexdigest(json.dumps(_chosen(self), sort_keys=True).encode())

    def to_dict(self) -> dict[str, Any]:
        """As nested plain values, without what is not set (TOML has no null)."""
        return _plain(dataclasses.asdict(self))

    def write(self, path: Path) -> None:
        """Writes study.toml."""
        with replace_file(path) as file:
            tomli_w.dump(self.to_dict(), file)

    @staticmethod
    def read(path: Path) -> Study:
        """Reads study.toml.

        Raises:
            InputError: it is not a study of this version.
        """
        table = read_toml(path, "study")
        if not isinstance(table.get("recipe"), Mapping):
            raise InputError(f"{path}: not a study: it has no table [recipe]")
        before = {"version": 1}  # which wrote none
        return _build(Study, {**before, **table, "recipe": recipe_from(table["recipe"], str(path))}, str(path))

    def differences(self, other: Study) -> list[str]:
        """One line a value in which `other` differs: `batch: 64 here, 128 there`."""
        ours, theirs = dict(_flat(self.to_dict())), dict(_flat(other.to_dict()))
        return [
            f"{name}: {ours.get(name, 'not set')} in the study, {theirs.get(name, 'not set')} in the command"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]


def _recipe_folder() -> Any:
    return resources.files("fasttransfer") / "recipes"


def _build(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a TOML table: lists become tuples, whole numbers stand for floats, names must fit."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in table:
        if name not in fields:
            raise InputError(f"{where}: {name!r} is not known: choose among {', '.join(fields)}")
    for name, field in fields.items():
        if name not in table and field.default is dataclasses.MISSING:
            raise InputError(f"{where}: {name!r} is missing")
    values = {}
    for name, value in table.items():
        wanted = str(fields[name].type)
        value = tuple(value) if isinstance(value, list) else value
        value = float(value) if wanted.startswith("float") and type(value) is int else value
        for prefix, types in (("str", str), ("int", int), ("float", float), ("tuple", tuple)):
            if wanted.startswith(prefix) and (not isinstance(value, types) or isinstance(value, bool)):
                raise InputError(f"{where}: {name} is {value!r}, {wanted} is needed")
        values[name] = value
    return kind(**values)


def _chosen(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults, nested."""
    found = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if getattr(value, f.name) != f.default}
    return {name: _chosen(each) if dataclasses.is_dataclass(each) else each for name, each in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
