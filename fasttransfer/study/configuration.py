"""The configuration of a study: `Choices`, the user's options, and `Study`, the values that they resolve to.

Every value of a `Study` is settled, so that its file (study.toml) trains the same networks again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w
import xxhash

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import replace_file
from fasttransfer.core.toml import build_from_table, flatten, read_toml, to_plain
from fasttransfer.pipelines import views
from fasttransfer.study import cells
from fasttransfer.study.cells import Cell
from fasttransfer.study.recipe import Recipe, default_recipe, load_recipe, parse_recipe

if TYPE_CHECKING:
    from fasttransfer.networks.architecture import Architecture

BUILTIN = "builtin"
NATURAL_MANMADE = "natural-manmade"
TWO_DATA_SETS = "two data sets"
"""The split of a study whose tasks are two data sets."""
_BUILTIN_CUTS = 4  # default cuts of a study of the built-in images: all take too long for a first look
VERSION = 2
"""The version of a study's set of networks; version 1 had no base+."""
_ON_DISK = {"images": "pictures", "bad_images": "bad_pictures"}  # field -> its name in study.toml and digests
_IN_DIGESTS = {**_ON_DISK, "network": "geometry"}  # as they were named when the first weights were written


@dataclass(frozen=True)
class Choices:
    """The options that determine a study. None: decided by the images or the machine."""

    split: str = NATURAL_MANMADE
    """natural-manmade, random:SEED (the paper's halves are random:0 to random:3) or a TOML file with lists A and B."""
    data: str = BUILTIN
    """Images: builtin, a prepared store, or a source, which is prepared on first use: a folder or uncompressed tar in
    ImageFolder's, Tiny-ImageNet's or ILSVRC12's layout, ILSVRC12's archives, or WebDataset's shards."""
    data_a: str | None = None
    """Images of task A, where the tasks are two data sets, all classes of each, instead of --split and --data."""
    data_b: str | None = None
    """Images of task B, see --data-a."""
    network: str | None = None
    """Network to train: caffenet, caffenet-mini, torchvision:NAME or timm:NAME (fasttransfer networks lists them); by
    default the recipe's."""
    weights: str | None = None
    """Pretrained weights of a network of a library: a .safetensors or .pth file, or a tag of the library's, as
    IMAGENET1K_V1. Adds the treatments pretrained and pretrained+ unless others are named."""
    size: int | None = None
    """Side in pixels of the images that a network of a library reads; by default 64 for small images, else 224."""
    cuts: tuple[str, ...] | None = None
    """Stages of a network of a library to cut behind, by name, as layer1 layer2; by default behind every block."""
    layers: tuple[int, ...] | None = None
    """Numbers of layers (stages) to copy, from 1 to the last cut; by default all, of the built-in images 1 3 5 7."""
    treatments: tuple[str, ...] = cells.TREATMENTS
    """Networks to train beside the bases: selffer, selffer+, transfer, transfer+, random; random-he, the random
    control from He's initial values, where the recipe has smaller ones; pretrained and pretrained+, which copy from
    --weights, frozen and fine-tuned."""
    targets: tuple[str, ...] = cells.TASKS
    """Tasks to train them on: A, B."""
    seeds: tuple[int, ...] | None = None
    """One whole grid per seed; by default 0, of the built-in images 0 and 1."""
    classes: int | None = None
    """Use this many classes of each task, chosen in a seeded order; by default all, of the built-in images 6."""
    per_class: int | None = None
    """Use the first so many training images per class."""
    views: int | None = None
    """Show training images in a fixed list of views instead of any crop: 1 (the centre), 2 (with its mirror) or 10
    (corners and centre with mirrors). An approximation; the cache keeps its frozen features for the next study."""
    recipe: str | None = None
    """caffe (the paper's, to the letter), fast, mini (small images); for networks of a library small, small-adamw,
    large or large-adamw; or a TOML file. By default the one that suits network and images."""
    epochs: float | None = None
    """Length of training in passes over the task's images, instead of the recipe's."""
    steps: int | None = None
    """Length of training in steps, instead of the recipe's."""
    batch: int | None = None
    """Images per step."""
    lr: float | None = None
    """Learning rate."""
    dropout: float | None = None
    """Probability of dropping a value, where the network has no dropout of its own; by default the recipe's."""
    precision: str | None = None
    """fp32 or bf16; by default bf16 where the hardware has it, but fp32 for small networks on a CPU."""
    device: str | None = None
    """cpu or cuda; by default a GPU where there is one."""
    bad_images: str = "fail"
    """Action for images that cannot be decoded: fail, or skip them and log it."""

    def __post_init__(self) -> None:
        def need(is_met: bool, message: str) -> None:
            if not is_met:
                raise InputError(message)

        seeds = (0,) if self.seeds is None else self.seeds
        options: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = (
            ("--layers", self.layers or (), self.layers or ()),  # `resolve_layers` knows how many there are
            ("--treatments", self.treatments, cells.ALL_TREATMENTS),
            ("--targets", self.targets, cells.TASKS),
            ("--seeds", seeds, seeds),
        )
        for option, values, allowed in options:
            for value in values:
                need(value in allowed, f"{option} {value}: choose among {', '.join(map(str, allowed))}")
            need(len(set(values)) == len(values), f"{option}: a value is given twice")
        need(len(self.targets) > 0, "--targets: name at least one of A, B")
        need(len(seeds) > 0, "--seeds: name at least one")
        need(all(s >= 0 for s in seeds), "--seeds: whole numbers from 0 are needed")
        need(self.classes is None or self.classes >= 2, f"--classes {self.classes}: at least 2 per task are needed")
        need(self.per_class is None or self.per_class >= 1, f"--per-class {self.per_class}: at least 1 is needed")
        need(
            self.views is None or self.views in views.COUNTS,
            f"--views {self.views}: choose 1 (the centre), 2 (with its mirror) or 10 (corners and centre with mirrors)",
        )
        need(
            self.dropout is None or 0 <= self.dropout < 1,
            f"--dropout {self.dropout}: a probability from 0 and below 1 is needed",
        )
        need((self.data_a is None) == (self.data_b is None), "--data-a and --data-b: give both or neither")
        need(
            self.data_a is None or (self.data, self.split) == (BUILTIN, NATURAL_MANMADE),
            "--data-a and --data-b: are the two tasks, so that there is nothing to split: drop --data and --split",
        )
        has_pretrained = bool({*self.treatments} & {*cells.PRETRAINED_TREATMENTS})
        need(
            not has_pretrained or self.weights is not None,
            f"--treatments {cells.PRETRAINED_TREATMENTS[0]}: copies from weights: name them with --weights",
        )
        if self.weights is not None and not has_pretrained:
            need(
                self.treatments == cells.TREATMENTS,
                f"--weights {self.weights}: no treatment copies from them: add pretrained or pretrained+",
            )
            object.__setattr__(self, "treatments", (*self.treatments, *cells.PRETRAINED_TREATMENTS))
        need(self.epochs is None or self.steps is None, "--epochs and --steps: give one of them")
        need(self.precision in (None, "fp32", "bf16"), f"--precision {self.precision}: choose fp32 or bf16")

    def resolve_recipe(self, *, is_small: bool) -> Recipe:
        """Return the recipe with the user's changes.

        Args:
            is_small: whether the images are small, which decides where the user has not.

        Raises:
            InputError: there is no such recipe or network, or a treatment means nothing under it.
        """
        network: Architecture | None = None
        if self.network is not None:
            from fasttransfer.networks.find import find_network  # here, because it imports PyTorch

            network = find_network(
                self.network, size=self.size, cuts=self.cuts, weights=self.weights, is_small=is_small
            )
        elif self.size is not None or self.cuts is not None:
            option = "--cuts" if self.size is None else "--size"
            raise InputError(f"{option}: is for networks of a library: name one with --network")
        recipe = load_recipe(self.recipe or default_recipe(network, is_small=is_small), network)
        if self.steps is not None or self.epochs is not None:
            recipe = dataclasses.replace(recipe, steps=self.steps, epochs=self.epochs)
        if recipe.init != "caffe" and cells.RANDOM_HE in self.treatments:
            own = "He's values" if recipe.init == "he" else "the library's own values"
            raise InputError(
                f"--treatments {cells.RANDOM_HE}: recipe {recipe.name} starts from {own} already, so that random is "
                "the control to choose: leave it out, or choose a recipe whose init is caffe"
            )
        changes = {name: v for name in ("batch", "lr", "dropout") if (v := getattr(self, name)) is not None}
        return dataclasses.replace(recipe, **changes)

    def resolve_layers(self, network: Architecture) -> tuple[int, ...]:
        """Return the numbers of stages of `network` to copy.

        Raises:
            InputError: it has no such cut.
        """
        if self.layers is None and self.data == BUILTIN and self.data_a is None:
            return network.cuts[:: -max(1, -(-len(network.cuts) // _BUILTIN_CUTS))][::-1]
        for n in self.layers or ():
            if n not in network.cuts:
                raise InputError(f"--layers {n}: choose among 1 to {len(network.cuts)} for {network.name}")
        return network.cuts if self.layers is None else self.layers


@dataclass(frozen=True)
class Feeding:
    """The options about this machine. None is part of the study, but a source stored as JPEGs is not quite the same
    images as one stored as pixels."""

    feed: Literal["memory", "dali"] | None = None
    """Feed of images: memory (raw stores) or dali (jpeg stores); by default as the store needs. A source becomes such a
    store, by default a raw one where the disk has room."""
    hw_share: float | None = None
    """Share of the JPEGs, from 0 to 1, that a GPU's hardware decoder takes from its cores, where it has one; by default
    DALI's own, 0.65."""
    engine: Literal["local", "ray"] = "local"
    """Workers that train: local (processes of this machine) or ray (workers of the Ray cluster that RAY_ADDRESS names,
    else of one on this machine; docs/clusters.md)."""
    features: Literal["auto", "cache", "live"] = "auto"
    """Source of frozen features in a study with --views: cache (computed once and kept), live (computed in every
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
    """All values that determine the weights and records of a run.

    Attributes:
        data: "builtin" or the absolute path of the source or store when the study began; images: digest of the prepared
            images, by which they are known wherever they lie now, see `at_place_of`.
        data_b, images_b: those of task B, where the tasks are two data sets and the former are task A's.
        split: its form in `Choices`, or `TWO_DATA_SETS`; tasks: digest of the two lists of classes that result from it.
        layers, treatments, targets, seeds: select the networks, see `fasttransfer.study.cells.study_cells`.
        classes, per_class: limits on the images, None for none.
        precision: "fp32" or "bf16"; device: "cpu" or "cuda".
        threads: CPU threads per network (the order in which sums are rounded depends on it).
        views: length of the list of views of the training images; None: any crop and its mirror.
        weights: digest of the pretrained weights that cells copy from; None where none does.
        version: see `VERSION`.
    """

    data: str
    images: str
    split: str
    tasks: str
    layers: tuple[int, ...]
    treatments: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    bad_images: str
    precision: str
    device: str
    threads: int
    recipe: Recipe
    classes: int | None = None
    per_class: int | None = None
    views: int | None = None
    weights: str | None = None
    data_b: str | None = None
    images_b: str | None = None
    version: int = VERSION

    def cells(self) -> tuple[Cell, ...]:
        """Return every network of the study."""
        return cells.study_cells(
            self.targets, self.treatments, self.layers, self.seeds, len(self.recipe.network.stages)
        )

    def data_of(self, task: str) -> str:
        """Return the images of a task: "builtin" or the absolute path of the source or store."""
        return self.data_b if task == "B" and self.data_b is not None else self.data

    def images_of(self, task: str) -> str:
        """Return the digest of a task's prepared images."""
        return self.images_b if task == "B" and self.images_b is not None else self.images

    def means_of(self, cell: Cell) -> str:
        """Return the name of the means that are subtracted from the images of `cell`: a task, or "channels"."""
        return self.recipe.network.normalised_by(cell.mean_of)

    def digest(self) -> str:
        """Return a digest of every value that is not at its default: equal for equal studies, stored in their weights.

        A study older than some value keeps its digest: it was trained with what is now that value's default.
        """
        return xxhash.xxh3_128_hexdigest(json.dumps(_non_defaults(self), sort_keys=True).encode())

    def to_dict(self) -> dict[str, Any]:
        """Return the study as nested plain values, without those that are None (TOML has no null)."""
        return _rename_keys(to_plain(dataclasses.asdict(self)), _ON_DISK)

    def write(self, path: Path) -> None:
        """Write study.toml."""
        with replace_file(path) as file:
            tomli_w.dump(self.to_dict(), file)

    @staticmethod
    def read(path: Path) -> Study:
        """Read study.toml.

        Raises:
            InputError: the file is not a study of this version.
        """
        table = read_toml(path, "study")
        if not isinstance(table.get("recipe"), Mapping):
            raise InputError(f"{path}: not a study: it has no table [recipe]")
        table = {"version": 1, **table}  # version 1 did not write its number
        table = _rename_keys(table, {old: name for name, old in _ON_DISK.items()})
        return build_from_table(Study, {**table, "recipe": parse_recipe(table["recipe"], str(path))}, str(path))

    def at_place_of(self, other: Study) -> Study:
        """Return the study with its images where those of `other` are, as far as they are the same images.

        Images are what their digest says: a folder that was moved, or a store made of it, holds the same.
        """
        moved = {
            place: getattr(other, place)
            for place, digest in (("data", "images"), ("data_b", "images_b"))
            if getattr(self, digest) == getattr(other, digest)
        }
        return dataclasses.replace(self, **moved)

    def differences(self, other: Study) -> list[str]:
        """Return one line per value in which `other` differs: `batch: 64 in the study, 128 in the command`.

        The place of the same images is no difference.
        """
        ours, theirs = (flatten(to_plain(dataclasses.asdict(study))) for study in (self, other.at_place_of(self)))
        return [
            f"{name}: {ours.get(name, 'not set')} in the study, {theirs.get(name, 'not set')} in the command"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]


def _non_defaults(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, and of those inside it, that are not at their defaults, named as in digests."""
    table = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if value != field.default:
            table[_IN_DIGESTS.get(field.name, field.name)] = (
                _non_defaults(value) if dataclasses.is_dataclass(value) else value
            )
    return table


def _rename_keys(table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in table.items()}
