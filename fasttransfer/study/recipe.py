"""Recipes: how one network is trained. The package has three; users write others as TOML files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttransfer.core.errors import InputError
from fasttransfer.core.toml import build_from_table, read_toml

if TYPE_CHECKING:
    from fasttransfer.networks.architecture import Architecture

_LARGE = 128  # side of images, in pixels, from which they are large
_LARGEST = 1e6  # of a rate or factor; products of them must be numbers in float32
_MOST_CHECKS = 10_000
_RECIPES = Path(__file__).with_name("recipes")
_CHOICES = {
    "outputs": ("task", "all"),
    "schedule": ("step", "cosine"),
    "optimiser": ("caffe", "sgd", "adamw"),
}


@dataclass(frozen=True)
class Recipe:
    """The settings that one network is trained with.

    Attributes:
        network: the network that is trained.
        batch: images per step.
        steps, epochs: length of training; exactly one of them is set.
        checks: number of validations, evenly spread over training, the last at its end.
        lr: learning rate of the weights.
        schedule: "step" (times `lr_factor` after each of the shares `lr_drops` of the run) or "cosine" (half a cosine
            from `lr` to 0); warmup: share of the run over which the learning rate first rises linearly from 0.
        optimiser: "caffe" (SGD with the learning rate inside the velocity), or torch's "sgd" or "adamw".
        momentum: of SGD; AdamW's first beta. beta2: AdamW's second.
        bias_lr: factor on the learning rate of biases, with Caffe's SGD; bias_decay: factor on the weight decay of
            biases and of the weights of normalisation layers.
        label_smoothing: share of each target that is spread over all classes.
        dropout: probability of dropping a value, where the network leaves that to the recipe; None: its own.
        init: kind of initial values, see `fasttransfer.networks.architecture.Architecture.inits`.
        scale: factor on pixel differences (0..255 minus mean); None: 1 / 255, for networks that are normalised by
            channel.
        first_init: factor on the initial weights of a base's first layer: the smaller they are, the sooner training
            forgets them.
        outputs: "task" (one output per class of the task) or "all" (one per class of the study, as in the paper).
        give_up: share of the steps after which training ends for a network that was at chance in every check so far,
            see `fasttransfer.study.chance`; 1 trains every network to the end.
    """

    name: str
    network: Architecture
    batch: int
    checks: int
    lr: float
    lr_drops: tuple[float, ...]
    lr_factor: float
    momentum: float
    weight_decay: float
    bias_lr: float
    bias_decay: float
    init: str
    outputs: str
    dropout: float | None = None
    scale: float | None = None
    steps: int | None = None
    epochs: float | None = None
    give_up: float = 0.5
    schedule: str = "step"
    warmup: float = 0.0
    first_init: float = 1.0
    optimiser: str = "caffe"
    beta2: float = 0.999
    label_smoothing: float = 0.0

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
        for name in ("lr", "lr_factor", "weight_decay", "bias_lr", "bias_decay", "scale", "first_init"):
            value = getattr(self, name)
            need(value is None or abs(value) <= _LARGEST, f"{name} is {value}, at most {_LARGEST:g} is possible")
        need(self.checks <= _MOST_CHECKS, f"checks is {self.checks}, at most {_MOST_CHECKS:,} are possible")
        for name in ("dropout", "momentum", "beta2", "label_smoothing"):
            value = getattr(self, name)
            need(value is None or 0 <= value < 1, f"{name} is {value}, 0 <= {name} < 1 is needed")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            need(value in allowed, f"{name} is {value!r}, choose one of {', '.join(allowed)}")
        self._check_network(need)
        need(
            self.schedule == "step" or not self.lr_drops,
            "lr_drops belong to the schedule step: leave them empty, or choose it",
        )
        need(0 <= self.warmup < 1, f"warmup is {self.warmup}, a share of the run from 0 and below 1 is needed")
        need(all(0 < d < 1 for d in self.lr_drops), "lr_drops are shares of the run, between 0 and 1")
        need(0 < self.give_up <= 1, f"give_up is {self.give_up}, a share of the run up to 1 is needed")

    def _check_network(self, need: Callable[[bool, str], None]) -> None:
        """Check the values that the network must know."""
        inits, name = self.network.inits, self.network.name
        need(self.init in inits, f"init is {self.init!r}, choose one of {', '.join(inits)} for {name}")
        if self.network.channel_mean is None:
            need(self.dropout is not None, f"dropout is missing, {name} leaves it to the recipe")
            need(self.scale is not None, f"scale is missing, {name} leaves it to the recipe")
        else:
            need(self.dropout is None, f"dropout is {self.dropout}, but {name} has its own: leave it out")
            need(self.scale is None, f"scale is {self.scale}, but {name} has a mean and a deviation per channel")
            need(self.first_init == 1.0, f"first_init is {self.first_init}, but {name} has its own initial values")
        is_torch = self.optimiser != "caffe"
        need(not is_torch or self.bias_lr == 1.0, f"bias_lr is {self.bias_lr}: only the optimiser caffe knows it")

    @property
    def pixel_scale(self) -> float:
        """Return the factor on pixel differences."""
        return 1 / 255 if self.scale is None else self.scale

    @property
    def moments(self) -> int:
        """Return the number of values that the optimiser keeps per weight."""
        return 2 if self.optimiser == "adamw" else 1

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


def default_recipe(network: Architecture | None, *, is_small: bool) -> str:
    """Return the name of the default recipe.

    Args:
        network: the network that the user named, if any.
        is_small: whether the images are small.
    """
    if network is None:
        return "mini" if is_small else "caffe"
    if network.channel_mean is None:
        return find_recipes(network.store)[0]
    size = "small" if network.crop < _LARGE else "large"
    return size if network.has_batch_norm else f"{size}-adamw"


def find_recipes(store: int) -> tuple[str, ...]:
    """Return the names of the recipes in the package whose networks take images of a store of this size."""
    return tuple(
        name
        for name in recipe_names()
        if "network" in (table := _read(name)) and parse_recipe(table, name).network.store == store
    )


def load_recipe(name: str, network: Architecture | None = None) -> Recipe:
    """Return the package's recipe called `name`, or the one in the TOML file at the path `name`.

    Args:
        network: the network to train, instead of the recipe's. In a file, `network` is the name of one, or a table
            with its fields.

    Raises:
        InputError: there is no such recipe, or it does not make sense.
    """
    return parse_recipe(_read(name), name, network)


def _read(name: str) -> dict[str, Any]:
    if name in recipe_names():
        return read_toml(_RECIPES / f"{name}.toml", "recipe")
    path = Path(name)
    if path.suffix != ".toml":
        raise InputError(f"recipe {name!r} is unknown: choose one of {', '.join(recipe_names())}, or a .toml file")
    return read_toml(path, "recipe")


def parse_recipe(table: Mapping[str, Any], where: str, network: Architecture | None = None) -> Recipe:
    """Return the recipe in the table of a TOML file; `where` names the file in errors.

    Args:
        network: see `load_recipe`.
    """
    table = dict(table)
    named = table.pop("geometry", None)  # its name in studies of earlier versions
    named = table.pop("network", named)
    if network is None:
        if named is None:
            raise InputError(f"recipe {where} is for any network: name one with --network, as torchvision:resnet18")
        from fasttransfer.networks.find import parse_network  # here, because it imports PyTorch

        network = parse_network(named, where)
    recipe: Recipe = build_from_table(Recipe, {**table, "network": network}, where)
    return recipe
