"""What a study will take, before any of it is trained: its networks, time, memory and disk."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fasttransfer import cost, machine
from fasttransfer.cells import TASKS, base, study_cells
from fasttransfer.grid import Plan, feeding_line, settle
from fasttransfer.jobs import plan_jobs
from fasttransfer.net import DROPOUT_STAGES, CaffeNet, Drop, initial_weights
from fasttransfer.pipelines.store import expected_bytes
from fasttransfer.progress import duration, size
from fasttransfer.step import Trainee
from fasttransfer.study import Choices, Feeding


def dry_run(
    choices: Choices,
    out: Path | None = None,
    *,
    feeding: Feeding | None = None,
    console: Console | None = None,
) -> None:
    """Prints the networks, what depends on what, and the time and disk the study will take; writes nothing.

    Raises:
        InputError: as `run`, as far as it can be known without decoding pictures.
    """
    console = console or Console()
    plan = settle(choices, feeding)
    cells = study_cells(choices.targets, choices.treatments, choices.layers, choices.seeds)
    recipe, workers = plan.recipe, machine.workers_for(plan.device, plan.threads)
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("network", "treatment", "trained on", "copies", "steps", "needs"):
        rows.add_column(heading)
    for cell in cells:
        copies = (
            "" if cell.source is None else f"1-{cell.n} of {cell.source}, {'frozen' if cell.frozen else 'fine-tuned'}"
        )
        steps = recipe.steps_for(plan.train[cell.target])
        seed = f" (seed {cell.seed})" if len(choices.seeds) > 1 else ""
        rows.add_row(
            cell.name + seed,
            cell.treatment,
            cell.target,
            copies,
            f"{steps:,}",
            cell.needs.name if cell.needs else "",
        )
    console.print(rows)
    for task in TASKS:
        console.print(
            Text(
                f"task {task}: {len(plan.classes[task])} classes, {plan.train[task]:,} training and {plan.val[task]:,} "
                "validation pictures"
            )
        )
    jobs = plan_jobs(recipe, cells, plan.classes, plan.train, plan.val, workers)
    seconds = sum(job.macs for job in jobs) / (_measured_rate(plan) * min(workers, len(jobs)))
    disk = len(cells) * 4 * cost.weight_count(recipe.geometry, recipe.outputs_for("A", plan.classes))
    # All of a source is prepared, whatever the study uses of it.
    count = 0 if plan.pictures.store else sum(map(sum, plan.pictures.per_class.values()))
    prepared = expected_bytes(plan.kind, count, recipe.geometry.store)
    console.print(
        Text(
            f"{len(cells)} networks, recipe {recipe.name}, {plan.precision} on {plan.device}, {workers} at a time: "
            f"about {duration(seconds)}, from a timed step; disk: {size(disk)} of weights, up to {size(2 * disk)} of "
            f"checkpoints while training, {size(prepared)} of prepared pictures; in "
            f"{out or plan.out}"
        ),
        soft_wrap=True,
    )
    console.print(Text(feeding_line(plan, plan.pictures.where, plan.device)), soft_wrap=True)


def _measured_rate(plan: Plan) -> float:
    """Multiply-adds a second of one worker, from a step of the whole network on random pictures."""
    recipe, device = plan.recipe, torch.device(plan.device)
    geometry, batch = recipe.geometry, min(recipe.batch, 64)
    outputs = recipe.outputs_for("A", plan.classes)
    dtype = machine.dtype_of(plan.precision)
    fresh = initial_weights(geometry, outputs, recipe.init, lambda stage: stage)
    trainee = Trainee(CaffeNet(geometry, outputs, dtype).to(device), 0, fresh, recipe)
    pictures = torch.rand(batch, *geometry.cut_shape(0), dtype=dtype, device=device)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    drop = Drop({stage: stage for stage in DROPOUT_STAGES}, torch.zeros_like(labels[0]), recipe.dropout)
    lr = torch.tensor(recipe.lr, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            trainee.step(pictures, labels, drop, lr)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return batch * cost.trained_macs(geometry, outputs, base("A", 0)) / seconds
