"""Cells of one target and seed, trained on one stream of batches.

Each batch is made once. Each source's frozen prefix runs once and hands every cut to the cells that start there;
fine-tuned cells and bases start from the pictures. What a cell computes never depends on what else is in its cohort:
its draws are functions of study, target and step, and no operation mixes cells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer import cost, graphs, inputs, paths, randomness, weights
from fasttransfer.cells import BASE, HE, RANDOM_HE, Cell
from fasttransfer.chance import at_chance, hopeless
from fasttransfer.geometry import STAGES
from fasttransfer.net import DROPOUT_STAGES, LAYER_NAMES, CaffeNet, Drop, initial_weights
from fasttransfer.pipelines.feed import WHOLE, Feed, Share, Stream
from fasttransfer.pipelines.views import view_list
from fasttransfer.prefix import cut_name, kept_cut, rounded_cuts
from fasttransfer.records import Evaluation
from fasttransfer.step import Trainee
from fasttransfer.study import Study

_UNIT_SCALE = 1 / 64  # of pixel differences, for about unit variance


@dataclass(frozen=True)
class Started:
    """A cohort begins or resumes: its shape, for the progress display."""

    cells: tuple[Cell, ...]
    step: int
    steps: int


@dataclass(frozen=True)
class Advanced:
    """`macs` multiply-adds have been done since the last such message; the cohort is at `step`."""

    step: int
    steps: int
    macs: float


@dataclass(frozen=True)
class Checked:
    """Validation checks of one cell, the latest last."""

    cell: Cell
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Ended:
    """A cell is "done" or "stuck" (its weights are on disk), "diverged", or "skipped" with what it copies from.

    `correct` says which validation images its last check got right, see `fasttransfer.records.Result`.
    """

    cell: Cell
    state: str
    steps: int
    reason: str = ""
    correct: bytes | None = None


@dataclass(frozen=True)
class Noted:
    """What else there is to tell, about features: `stays` if it should be read and recorded, else how far it is."""

    text: str
    stays: bool = True


Message = Started | Advanced | Checked | Ended | Noted


@dataclass(frozen=True)
class Target:
    """What a cohort is trained on: a task, its numbers of classes and pictures, its networks' outputs, its feed.

    `share` is the part of every batch that the feed makes.
    """

    task: str
    classes: int
    outputs: int
    train_pictures: int
    val_pictures: int
    feed: Feed
    share: Share = WHOLE


def stream_of(study: Study, cell: Cell, pictures: int) -> Stream:
    """Order and views of the training pictures of `cell`: those of its target and seed.

    Bases have draws of their own, so that a selffer's new layers do not start where its base's did.
    """
    purpose = _purpose(cell)
    geometry = study.recipe.geometry
    margin = geometry.store - geometry.crop
    return Stream(
        order_key=randomness.key(cell.seed, f"{purpose}-order", cell.target),
        view_key=randomness.key(cell.seed, f"{purpose}-views", cell.target),
        pictures=pictures,
        batch=study.recipe.batch,
        margin=margin,
        choices=view_list(study.views, margin) if study.views else (),
    )


def _first_layers(weights: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Those of the first `n` layers."""
    return {name: w for name, w in weights.items() if name.split(".")[0] in LAYER_NAMES[:n]}


def _purpose(cell: Cell) -> str:
    return "base" if cell.treatment == BASE else "cell"


def start_weights(
    study: Study, purpose: str, seed: int, task: str, outputs: int, init: str, start: int = 0, stop: int = STAGES
) -> dict[str, Tensor]:
    """Initial values of stages `start + 1` to `stop` on `task`; `purpose` is "base", "cell" or "random".

    `init` scales the draws and sets the biases: the draws are the same for all. Where it is not the recipe's, it is
    He's for the second random control. He's values keep a signal at the size it comes in: the first layer's bring
    pixels to about unit variance, whatever the recipe's scale, else the loss of the control explodes at once.
    The first layer of a base begins at the recipe's `first_init` times its size; random layers, which stay as they are,
    do not.
    """
    weights = initial_weights(
        study.recipe.geometry,
        outputs,
        init,
        lambda stage: randomness.key(seed, f"{purpose}-weights", task, stage),
        start,
        stop,
    )
    if init != study.recipe.init and start == 0:
        weights["conv1.weight"] *= _UNIT_SCALE / study.recipe.scale
    if purpose == "base" and start == 0:
        weights["conv1.weight"] *= study.recipe.first_init
    return weights


def copied_weights(
    study: Study, cells: Sequence[Cell], outputs: int, read: Callable[[Cell], Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """What `cells`, all of one target and seed, copy: source -> its first layers, as many as any of them wants.

    Args:
        read: the weights of a base; random sources are drawn.
    """
    found = {}
    for source, cell in {c.source: c for c in cells if c.source is not None}.items():
        n = max(c.n for c in cells if c.source == source)
        if cell.needs is not None:
            found[source] = _first_layers(read(cell.needs), n)
        else:
            init = "he" if source == HE else study.recipe.init
            found[source] = start_weights(study, "random", cell.seed, cell.target, outputs, init, stop=n)
    return found


def _init(study: Study, cell: Cell) -> str:
    """What all layers of `cell` start from unless they are copied from a base."""
    return "he" if cell.treatment == RANDOM_HE else study.recipe.init


@dataclass(frozen=True)
class _Source:
    """What frozen cells read, the first stages of a network without gradients; what all start from, its weights in
    float32."""

    net: CaffeNet
    weights: Mapping[str, Tensor]

    def kept(self) -> _Source:
        """Without the weights that nobody needs once all cells are built; those in float32 are held once."""
        own = self.net.named_weights(0, len(self.net.stages))
        left = {name: w.detach() if w.dtype == torch.float32 else self.weights[name] for name, w in own.items()}
        return _Source(self.net, left)


@dataclass
class _Member:
    """A cell in training. `step` counts the steps it has done; sums run since its last check.

    `correct`: (validation images,) bool, which of them the last check got right.
    """

    cell: Cell
    trainee: Trainee
    loss_sum: Tensor
    step: int = 0
    since: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    correct: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


class Cohort:
    """Trains `cells` to the end of the recipe, or until told to stop.

    Args:
        study: the study.
        cells: bases or copies of one target and seed, not yet ended.
        target: what they are trained on.
        sources: the weights of everything that a cell copies from, see `Cell.source`.
        folder: the study's folder; `weights/` and `checkpoints/` in it exist.
        device: where to train.
    """

    def __init__(
        self,
        study: Study,
        cells: Sequence[Cell],
        target: Target,
        sources: Mapping[str, Mapping[str, Tensor]],
        folder: Path,
        device: torch.device,
    ) -> None:
        assert len({(c.seed, c.target, _purpose(c)) for c in cells}) == 1, "one stream, one cohort"
        self._study, self._target, self._folder, self._device = study, target, folder, device
        self._recipe = study.recipe
        self._steps = self._recipe.steps_for(target.train_pictures)
        self._checks = frozenset(self._recipe.check_steps(self._steps))
        first = cells[0]
        self._drop_keys = {
            stage: randomness.key(first.seed, f"{_purpose(first)}-dropout", first.target, stage)
            for stage in DROPOUT_STAGES
        }
        self._dtype = inputs.dtype_of(study.precision)
        self._computed: tuple[tuple[Cell, ...], tuple[str, ...]] = ((), ())
        self._step_of: Callable[[Mapping[str, Tensor]], None]
        self._at = torch.zeros((), dtype=torch.int64, device=device)
        self._lr = torch.zeros((), device=device)
        self._sources = self._build_sources(cells, sources)
        fresh: dict[str, dict[str, Tensor]] = {}
        for init in {_init(study, cell) for cell in cells}:
            copied = min(c.n for c in cells if _init(study, c) == init)  # no cell draws these
            fresh[init] = start_weights(
                study, _purpose(first), first.seed, first.target, target.outputs, init, start=copied
            )
        self._members = [self._build_member(cell, fresh[_init(study, cell)]) for cell in cells]
        self._sources = {name: source.kept() for name, source in self._sources.items()}

    # -- building -----------------------------------------------------------------------------------------------

    def _build_sources(self, cells: Sequence[Cell], sources: Mapping[str, Mapping[str, Tensor]]) -> dict[str, _Source]:
        """Every source of the cells."""
        found = {}
        for source in sorted({c.source for c in cells if c.source is not None}):
            given = sources[source]
            net = self._empty()
            deepest = max((c.n for c in cells if c.frozen and c.source == source), default=0)
            del net.stages[deepest:]
            net.to_empty(device=self._device).load(given, 0, deepest)
            found[source] = _Source(net.requires_grad_(False), given)
        return found

    def _empty(self) -> CaffeNet:
        """A network that takes no memory: whoever needs only some of its stages gives it to those."""
        with torch.device("meta"):
            return CaffeNet(self._recipe.geometry, self._target.outputs, self._dtype)

    def _build_member(self, cell: Cell, fresh: Mapping[str, Tensor]) -> _Member:
        net = self._empty()
        start = cell.n if cell.frozen else 0
        begin = dict(fresh)
        if cell.source is not None:
            source = self._sources[cell.source]
            begin |= {name: source.weights[name] for name in net.named_weights(0, cell.n)}
            for i in range(start):  # the very same stages: frozen weights are held once a source
                net.stages[i] = source.net.stages[i]
        for stage in net.stages[start:]:
            stage.to_empty(device=self._device)
        trainee = self._trainee(net, start, begin)
        member = _Member(cell, trainee, torch.zeros((), dtype=torch.float64, device=self._device))
        self._restore(member)
        return member

    def _trainee(self, net: CaffeNet, start: int, begin: Mapping[str, Tensor]) -> Trainee:
        return Trainee(net, start, begin, self._recipe)

    # -- training -----------------------------------------------------------------------------------------------

    def run(self, emit: Callable[[Message], None], stop: Callable[[], bool], checkpoint_seconds: float = 30.0) -> bool:
        """Trains to the end; returns False when `stop` said so before, with everything in checkpoints.

        Checkpoints are written after `checkpoint_seconds` at the earliest, and never so often that writing takes
        more than a twentieth of the time. When they are written changes no result. The feed is closed at the end.
        """
        with closing(self._target.feed):
            return self._run(emit, stop, checkpoint_seconds)

    def _run(self, emit: Callable[[Message], None], stop: Callable[[], bool], checkpoint_seconds: float) -> bool:
        members = self._members
        step = min(m.step for m in members)
        emit(Started(tuple(m.cell for m in members), step, self._steps))
        for m in members:
            if m.evaluations:
                emit(Checked(m.cell, tuple(m.evaluations)))
        saved = told = time.monotonic()
        wait, macs = checkpoint_seconds, 0.0
        while members:
            if stop():
                self._save(members)
                return False
            if step == self._steps:
                for m in members:
                    self._finish(m, emit)
                break
            active = [m for m in members if m.step == step]
            self._train_step(step, active)
            step += 1
            cells, sizes = [m.cell for m in active], (self._recipe.geometry, self._target.outputs)
            macs += self._recipe.batch * cost.cohort_macs(*sizes, cells)
            if step in self._checks:
                macs += self._target.val_pictures * cost.validation_macs(*sizes, cells)
                lost = self._check(step, active, emit)
                members = self._members = [m for m in members if m not in lost]
            now = time.monotonic()
            if now - told > 0.3:
                emit(Advanced(step, self._steps, macs))
                told, macs = now, 0.0
            if now - saved >= wait and step < self._steps:
                self._save(members)
                saved = time.monotonic()
                wait = max(checkpoint_seconds, 20 * (saved - now))
        emit(Advanced(self._steps, self._steps, macs))
        return True

    def _train_step(self, step: int, active: Sequence[_Member]) -> None:
        batch = self._target.feed.train(step)
        self._at.fill_(step)
        self._lr.fill_(self._recipe.lr_at(step, self._steps))
        given = {"labels": batch.labels, **batch.pictures, **batch.cuts}
        self._compute(active, tuple(given))(given)
        for m in active:
            m.since += 1
            m.step = step + 1

    def _compute(self, active: Sequence[_Member], given: tuple[str, ...]) -> Callable[[Mapping[str, Tensor]], None]:
        """One step of the cells `active`, as a function of what is `given`; on a GPU it is recorded."""
        asked = tuple(m.cell for m in active), given
        if self._computed != asked:
            members = tuple(active)
            first, end = self._target.share.of(self._recipe.batch)
            around = first, self._recipe.batch - end

            def compute(batch: Mapping[str, Tensor]) -> None:
                drop = Drop(self._drop_keys, self._at, self._recipe.dropout, around)
                cuts = self._cuts(batch, members, drop)
                for m in members:
                    m.loss_sum += m.trainee.step(self._entrance(m, batch, cuts), batch["labels"], drop, self._lr)

            self._step_of = self._recorded(compute)
            self._computed = asked
        return self._step_of

    def _recorded(self, compute: Callable[[Mapping[str, Tensor]], None]) -> Callable[[Mapping[str, Tensor]], None]:
        return graphs.Recorded(compute) if self._device.type == "cuda" else compute

    @torch.no_grad()
    def _cuts(
        self, batch: Mapping[str, Tensor], active: Sequence[_Member], drop: Drop | None
    ) -> dict[tuple[str, int], Tensor]:
        """(source, n) -> cut n of every source's prefix that a frozen cell starts from.

        In a study with views it is rounded where features are kept, and taken from the batch where it is there.
        """
        cuts: dict[tuple[str, int], Tensor] = {}
        wanted: dict[str, list[_Member]] = {}
        for m in active:
            if m.cell.frozen and m.cell.source is not None:
                wanted.setdefault(m.cell.source, []).append(m)
        for source, members in wanted.items():
            net, mean, stops = self._sources[source].net, members[0].cell.mean_of, sorted({m.cell.n for m in members})
            if self._study.views is not None:
                names = {kept_cut(n): cut_name(source, kept_cut(n)) for n in stops}
                kept = {cut: batch[name] for cut, name in names.items() if name in batch}
                if live := names.keys() - kept.keys():
                    kept |= rounded_cuts(net, batch[mean], live, self._recipe.batch)
                for n in stops:
                    cuts[source, n] = net(kept[kept_cut(n)].to(self._dtype), start=kept_cut(n), stop=n, drop=drop)
                continue
            x = batch[mean]
            for start, stop in zip([0, *stops], stops, strict=False):
                x = net(x, start=start, stop=stop, drop=drop)
                cuts[source, stop] = x
        return cuts

    @staticmethod
    def _entrance(m: _Member, pictures: Mapping[str, Tensor], cuts: Mapping[tuple[str, int], Tensor]) -> Tensor:
        if m.trainee.start:
            assert m.cell.source is not None
            return cuts[m.cell.source, m.trainee.start]
        return pictures[m.cell.mean_of]

    # -- validation ---------------------------------------------------------------------------------------------

    def _check(self, step: int, active: Sequence[_Member], emit: Callable[[Message], None]) -> list[_Member]:
        """Validates and reports `active`; returns those that diverged or are stuck, which are reported as ended."""
        lost = []
        give_up = self._recipe.give_up
        for m, (val_loss, correct) in zip(active, self._validate(active), strict=True):
            val_top1 = float(correct.sum() / len(correct))
            found = Evaluation(step, _finite(float(m.loss_sum) / m.since), _finite(val_loss), val_top1)
            m.evaluations.append(found)
            m.correct = correct
            m.loss_sum.zero_()
            m.since = 0
            emit(Checked(m.cell, (found,)))
            if found.train_loss is None or found.val_loss is None:
                paths.checkpoint_file(self._folder, m.cell).unlink(missing_ok=True)
                emit(Ended(m.cell, "diverged", step, f"its loss was not a finite number by step {step}"))
                lost.append(m)
            elif hopeless(m.evaluations, self._target.classes, self._steps, give_up):
                self._finish(m, emit)
                lost.append(m)
        return lost

    @torch.no_grad()
    def _validate(self, active: Sequence[_Member]) -> list[tuple[float, Tensor]]:
        """Mean loss of each cell over the validation images, without dropout, and (images,) bool: which are right."""
        total = self._target.val_pictures
        losses = torch.zeros(len(active), dtype=torch.float64, device=self._device)
        correct = torch.zeros(len(active), total, dtype=torch.uint8, device=self._device)
        start, _ = self._target.share.of(total)
        for batch in self._target.feed.val():
            cuts = self._cuts({**batch.pictures, **batch.cuts}, active, None)
            for i, m in enumerate(active):
                logits = m.trainee.net(self._entrance(m, batch.pictures, cuts), start=m.trainee.start).float()
                losses[i] += F.cross_entropy(logits, batch.labels, reduction="sum")
                correct[i, start : start + len(batch.labels)] = logits.argmax(dim=1) == batch.labels
            start += len(batch.labels)
        self._sum_over_processes(losses, correct)
        return list(zip((losses / total).tolist(), correct.bool().cpu(), strict=True))

    def _sum_over_processes(self, *counts: Tensor) -> None:
        """Adds up, in place, what each process has counted on its share of the validation images; here is but one."""

    # -- on disk ------------------------------------------------------------------------------------------------

    def _save(self, members: Sequence[_Member]) -> None:
        for m in members:
            velocities = {f"velocity/{name}": v for name, v in m.trainee.velocities.items()}
            right = {"correct": m.correct.to(torch.uint8)} if len(m.correct) else {}
            tensors = {"loss_sum": m.loss_sum, **right, **m.trainee.weights, **velocities}
            about = {
                "cell": m.cell.label,
                "study": self._study.digest(),
                "step": m.step,
                "since": m.since,
                "evaluations": [asdict(e) for e in m.evaluations],
            }
            weights.save(paths.checkpoint_file(self._folder, m.cell), tensors, about)

    @torch.no_grad()
    def _restore(self, m: _Member) -> None:
        """Goes on from the cell's checkpoint where there is a sound one; a damaged one is put aside."""
        path = paths.checkpoint_file(self._folder, m.cell)
        try:
            tensors, about = weights.load(path)
        except FileNotFoundError:
            return
        except weights.CorruptFileError:
            weights.quarantine(path)
            return
        if about["study"] != self._study.digest() or about["cell"] != m.cell.label:
            weights.quarantine(path)
            return
        m.trainee.load(tensors)
        for name, velocity in m.trainee.velocities.items():
            velocity.copy_(tensors[f"velocity/{name}"])
        m.loss_sum.copy_(tensors["loss_sum"])
        m.step, m.since = about["step"], about["since"]
        m.evaluations = [Evaluation(**e) for e in about["evaluations"]]
        if "correct" in tensors:
            m.correct = tensors["correct"].bool()

    def _finish(self, m: _Member, emit: Callable[[Message], None]) -> None:
        """Writes the network and reports it; before the last step it is stuck."""
        classes, last = self._target.classes, m.evaluations[-1]
        reason = ""
        if at_chance(last, classes):
            reason = f"no better than chance: loss {last.val_loss:.3f}, an even guess has {math.log(classes):.3f}"
        state = "done" if m.step == self._steps else "stuck"
        right = np.packbits(m.correct.numpy()).tobytes()
        about = {
            "cell": m.cell.label,
            "study": self._study.digest(),
            "state": state,
            "step": m.step,
            "reason": reason,
            "evaluations": [asdict(e) for e in m.evaluations],
            "correct": right.hex(),
            "geometry": asdict(self._recipe.geometry),
            "mean": str(paths.mean_file(Path(), m.cell.mean_of)),
            "scale": self._recipe.scale,
            "processes": self._target.share.ranks,
        }
        frozen = m.trainee.net.named_weights(0, m.trainee.start)
        copied = {name: self._sources[m.cell.source].weights[name] for name in frozen} if m.cell.source else {}
        weights.save(paths.weights_file(self._folder, m.cell), {**copied, **m.trainee.weights}, about)
        paths.checkpoint_file(self._folder, m.cell).unlink(missing_ok=True)
        emit(Checked(m.cell, tuple(m.evaluations)))
        emit(Ended(m.cell, state, m.step, reason, right))


def found_on_disk(study: Study, folder: Path, cell: Cell) -> tuple[Checked, Ended] | None:
    """What `cell` reported when it ended, from its weights file; None where there is none of this study.

    A damaged file is put aside.
    """
    path = paths.weights_file(folder, cell)
    try:
        _, about = weights.load(path)
    except FileNotFoundError:
        return None
    except weights.CorruptFileError:
        weights.quarantine(path)
        return None
    if about["study"] != study.digest() or about["cell"] != cell.label:
        weights.quarantine(path)
        return None
    evaluations = tuple(Evaluation(**e) for e in about["evaluations"])
    end = Ended(cell, about["state"], about["step"], about["reason"], bytes.fromhex(about["correct"]))
    return Checked(cell, evaluations), end


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
