"""Every head of a probe: what is asked for, how it is trained, which rate and decay are chosen, what came out."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.intervals import Estimate, estimate
from fasttransfer.core.progress import Log, format_bytes, format_duration
from fasttransfer.features import network_features
from fasttransfer.features.network_features import FeatureRequest
from fasttransfer.pipelines.choose_feed import HOST_SHARE
from fasttransfer.probe import heads
from fasttransfer.probe.examples import STEPS, ExampleSet, draw_example_sets

_TIMED_STEPS = 10


@dataclass(frozen=True)
class SweepSettings:
    """What is swept over. `examples` are numbers of each class, None for all there are."""

    cuts: tuple[int, ...]
    examples: tuple[int | None, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    decays: tuple[float, ...]

    def __post_init__(self) -> None:
        for option, values in (
            ("--cuts", self.cuts), ("--examples", self.examples), ("--seeds", self.seeds), ("--lrs", self.rates),
            ("--decays", self.decays),
        ):  # fmt: skip
            if not values:
                raise InputError(f"{option}: name at least one")
            if len(set(values)) < len(values):
                raise InputError(f"{option}: a value is given twice")
        for cut in self.cuts:
            if cut not in network_features.CUTS:
                raise InputError(f"--cuts {cut}: choose among 1 to 7")
        for k in self.examples:
            if k is not None and k < 1:
                raise InputError(f"--examples {k}: whole numbers from 1 are needed, or all")
        for seed in self.seeds:
            if seed < 0:
                raise InputError(f"--seeds {seed}: whole numbers from 0 are needed")
        for rate in self.rates:
            if not 0 < rate < math.inf:
                raise InputError(f"--lrs {rate:g}: positive numbers are needed")
        for decay in self.decays:
            if not 0 <= decay < math.inf:
                raise InputError(f"--decays {decay:g}: numbers from 0 are needed")

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Rate and decay of each head of a stack."""
        return list(itertools.product(sorted(self.rates), sorted(self.decays)))


class Head(NamedTuple):
    """One head, trained on all its examples.

    `held_out_top1` and `held_out_loss` are those of the heads like it that were trained without some of its examples,
    on the examples left out; None for a single example a class. Losses are mean cross-entropies in nats.
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
    """All heads of a probe. `examples` maps a number of examples of each class, None for all, to their mean number."""

    asked: FeatureRequest
    swept: SweepSettings
    heads: tuple[Head, ...]
    examples: dict[int | None, float]
    dtype: torch.dtype

    def chosen(self, cut: int, per_class: int | None) -> list[Head]:
        """The head of each seed whose rate and decay were chosen."""
        return [head for head in self.heads if head.chosen and (head.cut, head.per_class) == (cut, per_class)]

    def top1(self, cut: int, per_class: int | None) -> Estimate:
        """Mean top-1 of the chosen heads on the validation images, its interval over seeds."""
        found = estimate((self.asked.task, head.seed, head.val_top1) for head in self.chosen(cut, per_class))
        assert found is not None
        return found


def run_probe(asked: FeatureRequest, swept: SweepSettings, *, log: Log) -> ProbeResults:
    """Trains all heads on the features of `asked`, which are read from the cache or put into it.

    Args:
        say: told for each cut what it takes, before it is done.

    Raises:
        InputError: more examples than a class has; features that do not fit into memory.
    """
    train, val = asked.images["train"], asked.images["val"]
    labels, val_labels = torch.from_numpy(train.labels), torch.from_numpy(val.labels)
    lessons = draw_example_sets(labels, asked.classes, swept.examples, swept.seeds)
    used = torch.unique(torch.cat([lesson.rows for lesson in lessons]))
    place = torch.full((len(train),), -1)
    place[used] = torch.arange(len(used))
    dtype = choose_dtype(asked.device)
    made: list[Head] = []
    for cut in swept.cuts:
        workers = _workers(asked, swept, cut, len(used), len(val), lessons)
        x = network_features.read_features(asked, [cut], "train", used, keep=True, log=log)[cut].flat().to(asked.device)
        x_val = (
            network_features.read_features(asked, [cut], "val", asked.ids("val"), keep=True, log=log)[cut]
            .flat()
            .to(asked.device)
        )
        stacks = HeadTrainer(x, labels[used], x_val, val_labels, place, swept, len(asked.classes), dtype)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            seconds = pool.submit(stacks.seconds, lessons).result() / workers
            log(
                f"cut {cut}: {len(used):,} and {len(val):,} images x {x.shape[1]:,} values, "
                f"{format_bytes(x.nbytes + x_val.nbytes)}; {len(lessons) * len(swept.pairs):,} heads in {len(lessons)} "
                f"stacks, about {format_duration(seconds)}"
            )
            scored = list(pool.map(stacks.trained, lessons))
        made += _judged(cut, swept, lessons, scored, len(val))
    examples = {lesson.per_class: len(lesson.rows) / len(asked.classes) for lesson in lessons if lesson.fold is None}
    return ProbeResults(asked, swept, tuple(made), examples, dtype)


@dataclass(frozen=True, eq=False)
class HeadTrainer:
    """What all stacks of a cut are trained and scored on; `place` maps a row of the task's list to one of `x`."""

    x: Tensor
    labels: Tensor
    x_val: Tensor
    val_labels: Tensor
    place: Tensor
    swept: SweepSettings
    classes: int
    dtype: torch.dtype

    def trained(self, lesson: ExampleSet) -> tuple[Tensor, Tensor]:
        """Hits and sums of losses of a stack, see `heads.score`: on what is held out, else on validation images."""
        found = self._train(lesson, STEPS)
        if lesson.fold is None:
            scored = heads.score(found, self.x_val, self.val_labels.to(self.x.device))
        else:
            rows = self.place[lesson.held_out]
            scored = heads.score(found, self.x[rows], self.labels[rows].to(self.x.device))
        return scored[0].cpu(), scored[1].cpu()

    def seconds(self, lessons: Sequence[ExampleSet]) -> float:
        """About how long all of them will take, one after the other, from some steps of one of each size."""
        sizes = Counter(len(lesson.rows) for lesson in lessons)
        total = 0.0
        for lesson in {len(lesson.rows): lesson for lesson in lessons}.values():
            start = time.perf_counter()
            self._train(lesson, _TIMED_STEPS)
            total += (time.perf_counter() - start) * STEPS / _TIMED_STEPS * sizes[len(lesson.rows)]
        return total

    def _train(self, lesson: ExampleSet, steps: int) -> heads.Heads:
        rows = self.place[lesson.rows]
        rates, decays = zip(*self.swept.pairs, strict=True)
        return heads.train(
            self.x[rows],
            self.labels[rows].to(self.x.device),
            self.classes,
            list(itertools.islice(lesson.batches(), steps)),
            rates=rates,
            decays=decays,
            dtype=self.dtype,
        )


def _judged(
    cut: int, swept: SweepSettings, lessons: Sequence[ExampleSet], scored: Sequence[tuple[Tensor, Tensor]], val: int
) -> list[Head]:
    """The heads of a cut, the one chosen of each number of examples and seed marked."""
    groups: dict[tuple[int | None, int], list[tuple[ExampleSet, Tensor, Tensor]]] = defaultdict(list)
    for lesson, (hits, losses) in zip(lessons, scored, strict=True):
        groups[lesson.per_class, lesson.seed].append((lesson, hits, losses))
    made = []
    for (per_class, seed), group in groups.items():
        ((_, hits, losses),) = [each for each in group if each[0].fold is None]
        out = [each for each in group if each[0].fold is not None]
        held = sum(len(lesson.held_out) for lesson, _, _ in out)
        tops = [float(sum(each[1][i] for each in out)) / held for i in range(len(hits))] if out else None
        outs = [float(sum(each[2][i] for each in out)) / held for i in range(len(hits))] if out else None
        best = choose_head(swept.pairs, tops, outs)
        for i, (rate, decay) in enumerate(swept.pairs):
            made.append(
                Head(
                    cut,
                    per_class,
                    seed,
                    rate,
                    decay,
                    tops[i] if tops else None,
                    outs[i] if outs else None,
                    float(hits[i]) / val,
                    float(losses[i]) / val,
                    i == best,
                )
            )
    return made


def choose_head(
    pairs: Sequence[tuple[float, float]], held_out_top1: Sequence[float] | None, held_out_loss: Sequence[float] | None
) -> int:
    """Which rate and decay to take: the most held-out examples right, of equals the least held-out loss.

    Where nothing was held out, the middle of the rates and the middle of the decays, of two middles the larger.
    """
    if held_out_top1 is None or held_out_loss is None:
        rates, decays = (sorted(set(values)) for values in zip(*pairs, strict=True))
        return pairs.index((rates[len(rates) // 2], decays[len(decays) // 2]))
    return min(range(len(pairs)), key=lambda i: (-held_out_top1[i], held_out_loss[i], pairs[i]))


def choose_dtype(device: torch.device) -> torch.dtype:
    """Of the matrix products: bfloat16 where the hardware multiplies it."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if {"avx512_bf16", "amx_bf16"} & set(machine.instructions()) else torch.float32


def _workers(
    asked: FeatureRequest, swept: SweepSettings, cut: int, train: int, val: int, lessons: Sequence[ExampleSet]
) -> int:
    """Threads that train a stack each: as many as there are cores and memory for.

    Raises:
        InputError: not even one has room.
    """
    width = prod(asked.study.recipe.geometry.cut_shape(cut))
    stored = asked.bytes(cut, train + val)
    # Twice as float32 while they are centred, once as they are multiplied; weights, velocities, copies, gradients.
    largest = max(len(lesson.rows) for lesson in lessons)
    stack = (10 * largest + 12 * len(swept.pairs) * len(asked.classes)) * width
    free = machine.free_memory()
    cores = 1 if asked.device.type == "cuda" else min(len(lessons), machine.cores())
    if free is None:
        return cores
    room = int(HOST_SHARE * free - 2 * stored) // stack  # twice while they are laid out image by image
    if room < 1:
        raise InputError(
            f"cut {cut}: {train + val:,} images x {width:,} values and a stack of {len(swept.pairs)} heads take "
            f"{format_bytes(2 * stored + stack)}, {format_bytes(free)} of memory are free: leave the cut out, or ask "
            "for fewer --examples or fewer --lrs and --decays at a time"
        )
    return min(cores, room)
