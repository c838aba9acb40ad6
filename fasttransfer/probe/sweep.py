"""The sweep of a probe: its settings, the training of all heads, the choice of learning rate and decay, the results."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.intervals import Estimate, estimate
from fasttransfer.core.progress import Log, format_bytes, format_duration
from fasttransfer.features import network_features
from fasttransfer.features.feature_source import Part
from fasttransfer.features.network_features import FeatureRequest
from fasttransfer.pipelines.choose_feed import HOST_SHARE
from fasttransfer.probe import heads
from fasttransfer.probe.examples import STEPS, ExampleSet, draw_example_sets

_TIMED_STEPS = 10


@dataclass(frozen=True)
class SweepSettings:
    """The values that a sweep combines. `examples` are numbers per class, None for all."""

    cuts: tuple[int, ...]
    examples: tuple[int | None, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    decays: tuple[float, ...]

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, Sequence[Any], Callable[[Any], bool], str], ...] = (
            ("--cuts", self.cuts, lambda cut: cut >= 1, "whole numbers from 1 are needed"),
            ("--examples", self.examples, lambda k: k is None or k >= 1, "whole numbers from 1 are needed, or all"),
            ("--seeds", self.seeds, lambda seed: seed >= 0, "whole numbers from 0 are needed"),
            ("--lrs", self.rates, lambda rate: 0 < rate < math.inf, "positive numbers are needed"),
            ("--decays", self.decays, lambda decay: 0 <= decay < math.inf, "numbers from 0 are needed"),
        )
        for option, values, is_valid, needed in checks:
            if not values:
                raise InputError(f"{option}: name at least one")
            if len(set(values)) < len(values):
                raise InputError(f"{option}: a value is given twice")
            for value in values:
                if not is_valid(value):
                    shown = f"{value:g}" if isinstance(value, float) else value
                    raise InputError(f"{option} {shown}: {needed}")

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Return learning rate and weight decay of each head of a stack."""
        return list(itertools.product(sorted(self.rates), sorted(self.decays)))


class Head(NamedTuple):
    """One head, trained on all its examples.

    `rate` is its learning rate, `decay` its weight decay. `held_out_top1` and `held_out_loss` are the scores, on
    held-out examples, of the heads with the same settings that were trained without them; None for a single example per
    class. Losses are mean cross-entropies in nats.
    """

    cut: int
    per_class: int | None
    seed: int
    rate: float
    decay: float
    held_out_top1: float | None
    held_out_loss: float | None
    val_top1: float
    val_loss: float
    chosen: bool


@dataclass(frozen=True)
class ProbeResults:
    """All heads of a probe; `examples` maps a number of examples per class, None for all, to its mean over classes."""

    request: FeatureRequest
    settings: SweepSettings
    heads: tuple[Head, ...]
    examples: dict[int | None, float]
    dtype: torch.dtype

    def chosen(self, cut: int, per_class: int | None) -> list[Head]:
        """Return the head of each seed whose learning rate and decay were chosen."""
        return [head for head in self.heads if head.chosen and (head.cut, head.per_class) == (cut, per_class)]

    def top1(self, cut: int, per_class: int | None) -> Estimate:
        """Return the mean top-1 of the chosen heads on the validation images, with its interval over seeds."""
        mean = estimate((self.request.task, head.seed, head.val_top1) for head in self.chosen(cut, per_class))
        assert mean is not None
        return mean


def run_probe(request: FeatureRequest, settings: SweepSettings, *, log: Log) -> ProbeResults:
    """Train all heads on the features of `request`, which are read from the cache or computed into it.

    Args:
        log: receives a line about the size and duration of each cut before its heads are trained.

    Raises:
        InputError: the network has no such cut, a class has too few examples, or the features do not fit into memory.
    """
    request.check_cuts(settings.cuts)
    train, val = request.images["train"], request.images["val"]
    labels, val_labels = torch.from_numpy(train.labels), torch.from_numpy(val.labels)
    sets = draw_example_sets(labels, request.classes, settings.examples, settings.seeds)
    used = torch.unique(torch.cat([example_set.rows for example_set in sets]))
    place = torch.full((len(train),), -1)
    place[used] = torch.arange(len(used))
    dtype = choose_dtype(request.device)
    parts: list[tuple[Part, Tensor]] = [("train", used), ("val", request.ids("val"))]
    trained: list[Head] = []
    for cut in settings.cuts:
        workers = _count_workers(request, settings, cut, len(used), len(val), sets)
        x, x_val = (  # (N * V, E) bfloat16
            network_features.read_features(request, [cut], part, ids, keep=True, log=log)[cut].flat().to(request.device)
            for part, ids in parts
        )
        trainer = HeadTrainer(x, labels[used], x_val, val_labels, place, settings, len(request.classes), dtype)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            seconds = pool.submit(trainer.estimate_seconds, sets).result() / workers
            log(
                f"cut {cut}: {len(used):,} and {len(val):,} images x {x.shape[1]:,} values, "
                f"{format_bytes(x.nbytes + x_val.nbytes)}; {len(sets) * len(settings.pairs):,} heads in {len(sets)} "
                f"stacks, about {format_duration(seconds)}"
            )
            scores = list(pool.map(trainer.train_and_score, sets))
        trained += _collect_heads(cut, settings, sets, scores, len(val))
    examples = {each.per_class: len(each.rows) / len(request.classes) for each in sets if each.fold is None}
    return ProbeResults(request, settings, tuple(trained), examples, dtype)


@dataclass(frozen=True, eq=False)
class HeadTrainer:
    """Trains and scores the stacks of a cut; `place` maps a row of the task's list of images to a row of `x`."""

    x: Tensor
    labels: Tensor
    x_val: Tensor
    val_labels: Tensor
    place: Tensor
    settings: SweepSettings
    classes: int
    dtype: torch.dtype

    def train_and_score(self, example_set: ExampleSet) -> tuple[Tensor, Tensor]:
        """Return hits and summed losses of a stack, see `heads.score`: on held-out examples, else validation images."""
        stack = self._train(example_set, STEPS)
        if example_set.fold is None:
            hits, losses = heads.score(stack, self.x_val, self.val_labels.to(self.x.device))
        else:
            rows = self.place[example_set.held_out]
            hits, losses = heads.score(stack, self.x[rows], self.labels[rows].to(self.x.device))
        return hits.cpu(), losses.cpu()

    def estimate_seconds(self, sets: Sequence[ExampleSet]) -> float:
        """Return about how long all stacks take, one after the other, from some steps of one stack of each size."""
        sizes = Counter(len(example_set.rows) for example_set in sets)
        total = 0.0
        for example_set in {len(example_set.rows): example_set for example_set in sets}.values():
            start = time.perf_counter()
            self._train(example_set, _TIMED_STEPS)
            total += (time.perf_counter() - start) * STEPS / _TIMED_STEPS * sizes[len(example_set.rows)]
        return total

    def _train(self, example_set: ExampleSet, steps: int) -> heads.Heads:
        rows = self.place[example_set.rows]
        rates, decays = zip(*self.settings.pairs, strict=True)
        return heads.train(
            self.x[rows],
            self.labels[rows].to(self.x.device),
            self.classes,
            list(itertools.islice(example_set.batches(), steps)),
            rates=rates,
            decays=decays,
            dtype=self.dtype,
        )


def _collect_heads(
    cut: int,
    settings: SweepSettings,
    sets: Sequence[ExampleSet],
    scores: Sequence[tuple[Tensor, Tensor]],
    val_images: int,
) -> list[Head]:
    """Return the heads of a cut, with the one chosen for each number of examples and seed marked."""
    groups: dict[tuple[int | None, int], list[tuple[ExampleSet, Tensor]]] = defaultdict(list)
    for example_set, score in zip(sets, scores, strict=True):
        groups[example_set.per_class, example_set.seed].append((example_set, torch.stack(score)))
    collected = []
    for (per_class, seed), stacks in groups.items():
        (val,) = [score / val_images for example_set, score in stacks if example_set.fold is None]
        folds = [(len(example_set.held_out), score) for example_set, score in stacks if example_set.fold is not None]
        nothing = [None] * len(settings.pairs)
        top1, loss = None, None
        if folds:
            total = sum((score for _, score in folds), torch.zeros(()))
            top1, loss = (total / sum(held_out for held_out, _ in folds)).tolist()
        best = choose_head(settings.pairs, top1, loss)
        rows = zip(settings.pairs, top1 or nothing, loss or nothing, *val.tolist(), strict=True)
        collected += [
            Head(cut, per_class, seed, rate, decay, held_top1, held_loss, val_top1, val_loss, i == best)
            for i, ((rate, decay), held_top1, held_loss, val_top1, val_loss) in enumerate(rows)
        ]
    return collected


def choose_head(
    pairs: Sequence[tuple[float, float]], held_out_top1: Sequence[float] | None, held_out_loss: Sequence[float] | None
) -> int:
    """Return the index of the pair with the most held-out examples right, and of equals the one of least held-out loss.

    If nothing was held out, the pair of the middle learning rate and the middle decay, of two middles the larger.
    """
    if held_out_top1 is None or held_out_loss is None:
        rates, decays = (sorted(set(values)) for values in zip(*pairs, strict=True))
        return pairs.index((rates[len(rates) // 2], decays[len(decays) // 2]))
    return min(range(len(pairs)), key=lambda i: (-held_out_top1[i], held_out_loss[i], pairs[i]))


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return the type of the matrix products: bfloat16 if the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if {"avx512_bf16", "amx_bf16"} & set(machine.instructions()) else torch.float32


def _count_workers(
    request: FeatureRequest, settings: SweepSettings, cut: int, train: int, val: int, sets: Sequence[ExampleSet]
) -> int:
    """Return the number of threads that train a stack each: as many as there are cores and memory for.

    Raises:
        InputError: there is not enough memory for one.
    """
    width = request.study.recipe.network.cut_values(cut)
    features = request.bytes(cut, train + val)
    # Twice as float32 while they are centred, once as they are multiplied; weights, velocities, copies, gradients.
    largest = max(len(example_set.rows) for example_set in sets)
    stack = (10 * largest + 12 * len(settings.pairs) * len(request.classes)) * width
    free = machine.free_memory()
    cores = 1 if request.device.type == "cuda" else min(len(sets), machine.cores())
    if free is None:
        return cores
    room = int(HOST_SHARE * free - 2 * features) // stack  # twice while they are laid out image by image
    if room < 1:
        raise InputError(
            f"cut {cut}: {train + val:,} images x {width:,} values and a stack of {len(settings.pairs)} heads take "
            f"{format_bytes(2 * features + stack)}, {format_bytes(free)} of memory are free: leave the cut out, or ask "
            "for fewer --examples or fewer --lrs and --decays at a time"
        )
    return min(cores, room)
