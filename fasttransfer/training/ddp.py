"""Train one large network on several devices, in processes that torchrun starts.

Every process holds the whole network and makes its own part of every batch; PyTorch's DistributedDataParallel averages
the gradients while they are computed. Order, views and dropout masks are those of the whole batch, so the result is
that of one process but for rounding. The first process alone prepares images and writes files.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fasttransfer.core import devices, interrupts
from fasttransfer.core.console import print_line
from fasttransfer.core.errors import InputError
from fasttransfer.networks.architecture import StagedNetwork, StepDraws
from fasttransfer.pipelines.streams import Share
from fasttransfer.study.cells import TASKS, Cell, study_cells
from fasttransfer.study.configuration import Choices, Feeding
from fasttransfer.study.recipe import Recipe
from fasttransfer.training import grid
from fasttransfer.training.checkpoint import TrainingCell
from fasttransfer.training.cohort import Compute, OneProcess
from fasttransfer.training.cohort_builder import StudyContext, build_cohort
from fasttransfer.training.messages import Message
from fasttransfer.training.planning import JobPlan
from fasttransfer.training.step import StageTrainer
from fasttransfer.training.synced_batch_norm import SyncedBatchNorm

_CHECK_STOP = 16  # steps between two checks whether a process was asked to stop
# The others wait while the first prepares images. A process that dies is noticed at once, by its connections and by
# torchrun.
_TIMEOUT = timedelta(days=7)


def train_bases(
    choices: Choices,
    out: Path | None = None,
    *,
    tasks: Sequence[str] = TASKS,
    feeding: Feeding | None = None,
    console: Console | None = None,
    checkpoint_seconds: float = 30.0,
    show: grid.Show = lambda results, trained: None,
) -> int:
    """Train the base networks of a study on `tasks`, in all processes that torchrun started; return the exit code.

    They go into the study's folder as `grid.run` writes them, which then trains the rest. Where torchrun started one
    process alone, `grid.run` trains them.

    Raises:
        InputError: as `grid.run`; fewer GPUs, images or images per batch than processes; another process failed.
    """

    def wanted(cell: Cell) -> bool:
        return cell.treatment == "base" and cell.target in tasks

    how: dict[str, Any] = {"feeding": feeding, "console": console, "checkpoint_seconds": checkpoint_seconds}
    run: Callable[..., bool] = partial(grid.run, choices, out, **how, wanted=wanted, show=show)
    layers = (1,) if choices.layers is None else choices.layers  # which, decides no base
    if not any(map(wanted, study_cells(choices.targets, choices.treatments, layers, [0], 1))):
        raise InputError(f"--task {tasks[0]}: the study trains no base on it: drop --task, or add to --targets")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return 0 if run() else interrupts.exit_code()
    with _join_group(devices.choose_device(choices.device)) as share:
        if share.rank:
            _follow(share)
            return 0  # the first has the exit code: torchrun ends all processes when one exits with another
        if console:
            print_line(console, f"{ranks} processes train each network together")
        return 0 if _lead(share, run) else interrupts.exit_code()


@contextmanager
def _join_group(device: str) -> Iterator[Share]:
    """Join the processes that torchrun started; yields the share of this one."""
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device == "cuda":
        if here > (there := torch.cuda.device_count()):
            raise InputError(
                f"torchrun started {here} processes here, each needs a GPU and there are {there}: give it "
                f"--nproc-per-node {there}, or choose --device cpu"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Share(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _lead(share: Share, run: Callable[..., bool]) -> bool:
    """Call `run` in the first process, with every job trained by all."""
    is_training = False

    def together(setting: StudyContext, division: JobPlan, on_message: Callable[[Message], None], **_: object) -> bool:
        nonlocal is_training
        for job in division.jobs:
            is_training = True
            _broadcast((setting, job.cells))
            finished = _train(setting, job.cells, share, on_message)
            is_training = False
            if not finished:
                return False
        return True

    try:
        return run(together=together)
    finally:
        if not is_training:  # else the others are training, and end when they lose their connection
            _broadcast(None)


def _follow(share: Share) -> None:
    """Train this process's part of every job until the first process broadcasts that there are no more."""
    while (job := _broadcast(None)) is not None:
        setting, cells = job
        _train(setting, cells, share, lambda _: None)


def _broadcast(message: object) -> Any:
    """Return the `message` of the first process, in all processes."""
    box: list[Any] = [message]
    with _explain_loss():
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


@contextmanager
def _explain_loss() -> Iterator[None]:
    """Turn torch's error about the loss of another process, which names an address, into a sentence."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            "another process of this run has ended, so this one cannot go on: see its messages. The same command "
            "goes on from the last checkpoint."
        ) from error


def _train(setting: StudyContext, cells: tuple[Cell, ...], share: Share, on_message: Callable[[Message], None]) -> bool:
    """Train a network together with the other processes; return False when one of them was asked to stop."""
    study = setting.study
    device = devices.configure_process(study.device, study.threads, int(os.environ["LOCAL_RANK"]))
    # torchrun repeats the signals that a terminal has sent already.
    with _explain_loss(), interrupts.catch_signals(interrupts_again=False) as stop:
        cohort = build_cohort(setting, cells, device, processes=Processes(share))
        return cohort.run(on_message, _any_stops(stop), setting.checkpoint_seconds)


def _any_stops(stop: threading.Event) -> Callable[[], bool]:
    """Return a function of all processes: whether `stop` is set in any. It returns the same in all at each step."""
    steps = count()

    def is_stopping() -> bool:
        if next(steps) % _CHECK_STOP:
            return False
        flag = torch.tensor(int(stop.is_set()))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    return is_stopping


class DistributedTrainer(StageTrainer):
    """A trainer that sees a part of every batch and gets the gradients of the whole."""

    def __init__(self, net: StagedNetwork, start: int, state: Mapping[str, Tensor], recipe: Recipe) -> None:
        super().__init__(net, start, state, recipe)
        self._batch = recipe.batch
        self._normalisation = SyncedBatchNorm() if recipe.network.has_batch_norm else nullcontext()
        self._parallel = DistributedDataParallel(net, gradient_as_bucket_view=True)

    def _gradients(self, x: Tensor, labels: Tensor, draws: StepDraws) -> tuple[Tensor, Sequence[Tensor]]:
        """Return loss and gradients of the whole batch. DDP hooks into `backward`, not into `torch.autograd.grad`."""
        for weight in self._working:
            weight.grad = None
        with self._normalisation:
            logits = self._parallel(x, start=self.start, draws=draws)
        smoothing = self._label_smoothing
        mine = F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing) / self._batch
        (mine * dist.get_world_size()).backward()  # DDP takes the mean over processes, whose parts may differ in size
        loss = mine.detach().clone()
        dist.all_reduce(loss)
        gradients = [weight.grad for weight in self._working if weight.grad is not None]
        return loss, gradients


class Processes(OneProcess):
    """This process of several that train a base network, each with its part of every batch and validation image.

    Losses, top-1 and the wish to stop are summed over all processes, so that all go on alike; the first one alone reads
    and writes files.
    """

    def __init__(self, share: Share) -> None:
        self.share = share

    def make_trainer(self, net: StagedNetwork, start: int, begin: Mapping[str, Tensor], recipe: Recipe) -> StageTrainer:
        return DistributedTrainer(net, start, begin, recipe)

    def record(self, compute: Compute, device: torch.device) -> Compute:
        return compute  # DDP orders its buckets in the first steps

    def sum_counts(self, *counts: Tensor) -> None:
        for each in counts:
            dist.all_reduce(each)

    @torch.no_grad()
    def share_state(self, member: TrainingCell) -> None:
        """Have every process go on from the checkpoint or the initial values of the first."""
        trainee = member.trainee
        state = trainee.state()
        for tensor in (*state.values(), *trainee.optimiser.state.values(), member.loss_sum):
            dist.broadcast(tensor, src=0)
        trainee.load(state)
        box = [(member.step, member.since, member.evaluations)]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        member.step, member.since, member.evaluations = box[0]
