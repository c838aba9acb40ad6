"""Train cells of one target and seed on one stream of batches.

Each batch is made once. Each source's frozen prefix runs once, for all the cells that start at a cut of it;
fine-tuned cells and bases start from the images. What a cell computes never depends on what else is in its cohort:
its draws are functions of study, target and step, and no operation mixes cells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.networks.architecture import StagedNetwork, StepDraws, cut_name, rounded_cuts
from fasttransfer.networks.precision import dtype_of
from fasttransfer.pipelines.streams import WHOLE, Feed
from fasttransfer.study import paths
from fasttransfer.study.cells import Cell, by_source, deepest_cuts, frozen_by_source
from fasttransfer.study.chance import is_at_chance, is_hopeless
from fasttransfer.study.configuration import Study
from fasttransfer.study.recipe import Recipe
from fasttransfer.study.records import Evaluation
from fasttransfer.training import cuda_graph
from fasttransfer.training.checkpoint import TrainingCell, load_checkpoint, save_checkpoint, save_network
from fasttransfer.training.draws import dropout_keys, init_of, purpose_of, start_weights
from fasttransfer.training.messages import Advanced, Checked, Ended, Message, Started
from fasttransfer.training.step import StageTrainer
from fasttransfer.training.transfer import Source, copy_layers

Compute = Callable[[Mapping[str, Tensor]], None]  # one step of some cells, as a function of a batch


@dataclass(frozen=True)
class CohortTask:
    """The images that a cohort is trained on.

    Attributes:
        task, classes: "A" or "B", and its number of classes; outputs: width of the networks' last layer.
        train_images, val_images: how many there are, whichever part of them the feed makes.
    """

    task: str
    classes: int
    outputs: int
    train_images: int
    val_images: int
    feed: Feed


class OneProcess:
    """This process, which trains a cohort alone. `fasttransfer.training.ddp` has one that shares it with others.

    Attributes:
        share: the part of every batch, and of the validation images, that this process takes. The first process reads
            and writes files.
    """

    share = WHOLE

    @property
    def is_first(self) -> bool:
        return not self.share.rank

    def make_trainer(self, net: StagedNetwork, start: int, begin: Mapping[str, Tensor], recipe: Recipe) -> StageTrainer:
        """Return the trainer of the stages of `net` behind cut `start`."""
        return StageTrainer(net, start, begin, recipe)

    def record(self, compute: Compute, device: torch.device) -> Compute:
        """Return `compute` in the form that is run in every step: on a GPU a CUDA graph."""
        return cuda_graph.RecordedGraph(compute) if device.type == "cuda" else compute

    def sum_counts(self, *counts: Tensor) -> None:
        """Sum, in place, over all processes what each has counted on its share of the validation images."""

    def share_state(self, member: TrainingCell) -> None:
        """Have every process go on from what the first one has restored."""


class Cohort:
    """Some cells of a study, trained together.

    Args:
        study: the study.
        cells: bases or copies of one target and seed, not yet ended.
        target: the images that they are trained on.
        sources: `Cell.source` -> the weights that cells copy from it.
        folder: the study's folder; `weights/` and `checkpoints/` in it exist.
        device: where to train.
        processes: this one, and those that train the cohort with it.
    """

    def __init__(
        self,
        study: Study,
        cells: Sequence[Cell],
        target: CohortTask,
        sources: Mapping[str, Mapping[str, Tensor]],
        folder: Path,
        device: torch.device,
        processes: OneProcess | None = None,
    ) -> None:
        assert len({(c.seed, c.target, purpose_of(c)) for c in cells}) == 1, "one stream, one cohort"
        self._processes = processes or OneProcess()
        self._study, self._target, self._folder, self._device = study, target, folder, device
        self._recipe = study.recipe
        self._steps = self._recipe.steps_for(target.train_images)
        self._checks = frozenset(self._recipe.check_steps(self._steps))
        first = cells[0]
        self._network = study.recipe.network
        self._draw_keys = dropout_keys(first, self._network)
        self._compute_key: tuple[tuple[Cell, ...], tuple[str, ...]] = ((), ())
        self._compute: Compute  # of the cells and tensors in `_compute_key`
        self._at = torch.zeros((), dtype=torch.int64, device=device)
        self._lr = torch.zeros((), device=device)
        self._sources = self._build_sources(cells, sources)
        fresh: dict[str, dict[str, Tensor]] = {}
        for init in {init_of(study, cell) for cell in cells}:
            copied = min(c.n for c in cells if init_of(study, c) == init)  # no cell draws these
            fresh[init] = start_weights(
                study, purpose_of(first), first.seed, first.target, target.outputs, init, start=copied
            )
        self._members = [self._build_member(cell, fresh[init_of(study, cell)]) for cell in cells]
        self._sources = {name: source.of_frozen_cells() for name, source in self._sources.items()}

    def _build_sources(self, cells: Sequence[Cell], weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Source]:
        sources, deepest = {}, deepest_cuts(cells)
        for name in sorted(by_source(cells)):
            cut = deepest.get(name, 0)
            net = self._network.build(self._target.outputs, self._study.precision, self._device, stop=cut)
            net.load(weights[name])
            sources[name] = Source(net.freeze(), weights[name])
        return sources

    def _build_member(self, cell: Cell, fresh: Mapping[str, Tensor]) -> TrainingCell:
        start, begin = cell.first_trained, fresh
        net = self._network.build(self._target.outputs, self._study.precision, self._device, start=start)
        if cell.source is not None:
            begin = copy_layers(self._sources[cell.source], net, cell.n, fresh, frozen=cell.frozen)
        trainee = self._processes.make_trainer(net, start, begin, self._recipe)
        member = TrainingCell(cell, trainee, torch.zeros((), dtype=torch.float64, device=self._device))
        if self._processes.is_first:
            load_checkpoint(self._folder, self._study, member)
        self._processes.share_state(member)
        return member

    def run(
        self, on_message: Callable[[Message], None], stop: Callable[[], bool], checkpoint_seconds: float = 30.0
    ) -> bool:
        """Train to the end of the recipe; return False when `stop` returned True before, with all cells in checkpoints.

        Checkpoints are written after `checkpoint_seconds` at the earliest, and never so often that writing takes
        more than a twentieth of the time. When they are written changes no result. The feed is closed at the end.
        """
        with closing(self._target.feed):
            return self._run(on_message, stop, checkpoint_seconds)

    def _run(self, on_message: Callable[[Message], None], stop: Callable[[], bool], checkpoint_seconds: float) -> bool:
        members = self._members
        step = min(m.step for m in members)
        on_message(Started(tuple(m.cell for m in members), step, self._steps))
        for m in members:
            if m.evaluations:
                on_message(Checked(m.cell, tuple(m.evaluations)))
        saved = reported = time.monotonic()
        wait = checkpoint_seconds
        while members:
            if stop():
                self._save(members)
                return False
            if step == self._steps:
                for m in members:
                    self._finish(m, on_message)
                break
            active = [m for m in members if m.step == step]
            self.train_step(step, active)
            step += 1
            if step in self._checks:
                lost = self._check(step, active, on_message)
                members = self._members = [m for m in members if m not in lost]
            now = time.monotonic()
            if now - reported > 0.3:
                on_message(Advanced(tuple(m.cell for m in members), step, self._steps))
                reported = now
            if now - saved >= wait and step < self._steps:
                self._save(members)
                saved = time.monotonic()
                wait = max(checkpoint_seconds, 20 * (saved - now))
        return True

    def train_step(self, step: int, active: Sequence[TrainingCell] | None = None) -> None:
        """Train the cells `active`, by default all, on the batch of `step`, counted from 0."""
        active = self._members if active is None else active
        batch = self._target.feed.train(step)
        self._at.fill_(step)
        self._lr.fill_(self._recipe.lr_at(step, self._steps))
        tensors = {"labels": batch.labels, **batch.images, **batch.cuts}
        self._computation(active, tuple(tensors))(tensors)
        for m in active:
            m.since += 1
            m.step = step + 1

    def _computation(self, active: Sequence[TrainingCell], names: tuple[str, ...]) -> Compute:
        """Return one step of the cells `active` as a function of a batch, which has tensors of these names."""
        key = tuple(m.cell for m in active), names
        if self._compute_key != key:
            members = tuple(active)
            first, end = self._processes.share.of(self._recipe.batch)
            around = first, self._recipe.batch - end

            def compute(batch: Mapping[str, Tensor]) -> None:
                draws = StepDraws(self._draw_keys, self._at, self._recipe.dropout or 0.0, around)
                cuts = self._cuts(batch, members, draws)
                for m in members:
                    m.loss_sum += m.trainee.step(self._entrance(m, batch, cuts), batch["labels"], draws, self._lr)

            self._compute, self._compute_key = self._processes.record(compute, self._device), key
        return self._compute

    @torch.no_grad()
    def _cuts(
        self, batch: Mapping[str, Tensor], active: Sequence[TrainingCell], draws: StepDraws | None
    ) -> dict[tuple[str, int], Tensor]:
        """Return (source, n) -> cut n, for every cut that a frozen cell starts from.

        In a study with views it is rounded as cached features are, and taken from the batch where that has it.
        """
        cuts: dict[tuple[str, int], Tensor] = {}
        for source, cells in frozen_by_source(m.cell for m in active).items():
            net, stops = self._sources[source].net, sorted({cell.n for cell in cells})
            images = self._study.means_of(cells[0])
            if self._study.views is not None:
                kept = {n: self._network.kept_cut(n) for n in stops}
                names = {cut: cut_name(source, cut) for cut in kept.values()}
                rounded = {cut: batch[name] for cut, name in names.items() if name in batch}
                if live := names.keys() - rounded.keys():
                    rounded |= rounded_cuts(net, batch[images], live, self._recipe.batch)
                for n in stops:
                    x = rounded[kept[n]].to(dtype_of(self._study.precision))
                    cuts[source, n] = net(x, start=kept[n], stop=n, draws=draws)
                continue
            x = batch[images]
            for start, stop in zip([0, *stops], stops, strict=False):
                x = net(x, start=start, stop=stop, draws=draws)
                cuts[source, stop] = x
        return cuts

    def _entrance(
        self, m: TrainingCell, images: Mapping[str, Tensor], cuts: Mapping[tuple[str, int], Tensor]
    ) -> Tensor:
        """Return what the first trained stage of a cell reads."""
        if m.trainee.start:
            assert m.cell.source is not None
            return cuts[m.cell.source, m.trainee.start]
        return images[self._study.means_of(m.cell)]

    def _check(
        self, step: int, active: Sequence[TrainingCell], on_message: Callable[[Message], None]
    ) -> list[TrainingCell]:
        """Validate and report `active`; return those that diverged or are stuck, which are reported as ended."""
        lost = []
        give_up = self._recipe.give_up
        for m, (val_loss, correct) in zip(active, self.validate(active), strict=True):
            val_top1 = float(correct.sum() / len(correct))
            check = Evaluation(step, _finite(float(m.loss_sum) / m.since), _finite(val_loss), val_top1)
            m.evaluations.append(check)
            m.correct = correct
            m.loss_sum.zero_()
            m.since = 0
            on_message(Checked(m.cell, (check,)))
            if check.train_loss is None or check.val_loss is None:
                paths.checkpoint_file(self._folder, m.cell).unlink(missing_ok=True)
                on_message(Ended(m.cell, "diverged", step, f"its loss was not a finite number by step {step}"))
                lost.append(m)
            elif is_hopeless(m.evaluations, self._target.classes, self._steps, give_up):
                self._finish(m, on_message)
                lost.append(m)
        return lost

    @torch.no_grad()
    def validate(self, active: Sequence[TrainingCell] | None = None) -> list[tuple[float, Tensor]]:
        """Validate the cells `active`, by default all, without dropout.

        Returns:
            For each its mean loss, and (validation images,) bool: those it got right.
        """
        active = self._members if active is None else active
        total = self._target.val_images
        losses = torch.zeros(len(active), dtype=torch.float64, device=self._device)
        correct = torch.zeros(len(active), total, dtype=torch.uint8, device=self._device)
        start, _ = self._processes.share.of(total)
        for batch in self._target.feed.val():
            cuts = self._cuts({**batch.images, **batch.cuts}, active, None)
            for i, m in enumerate(active):
                logits = m.trainee.net(self._entrance(m, batch.images, cuts), start=m.trainee.start).float()
                losses[i] += F.cross_entropy(logits, batch.labels, reduction="sum")
                correct[i, start : start + len(batch.labels)] = logits.argmax(dim=1) == batch.labels
            start += len(batch.labels)
        self._processes.sum_counts(losses, correct)
        return list(zip((losses / total).tolist(), correct.bool().cpu(), strict=True))

    def _save(self, members: Sequence[TrainingCell]) -> None:
        if self._processes.is_first:
            for m in members:
                save_checkpoint(self._folder, self._study, m)

    def _finish(self, m: TrainingCell, on_message: Callable[[Message], None]) -> None:
        """Write the network and report that the cell is done, or before the last step that it is stuck."""
        if not self._processes.is_first:
            return
        classes, last = self._target.classes, m.evaluations[-1]
        reason = ""
        if is_at_chance(last, classes):
            reason = f"no better than chance: loss {last.val_loss:.3f}, an even guess has {math.log(classes):.3f}"
        state = "done" if m.step == self._steps else "stuck"
        end = Ended(m.cell, state, m.step, reason, np.packbits(m.correct.numpy()).tobytes())
        frozen = self._network.names(0, m.trainee.start)
        copied = {name: self._sources[m.cell.source].weights[name] for name in frozen} if m.cell.source else {}
        trained = {**copied, **m.trainee.state()}
        save_network(self._folder, self._study, end, trained, m.evaluations, processes=self._processes.share.ranks)
        on_message(Checked(m.cell, tuple(m.evaluations)))
        on_message(end)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
