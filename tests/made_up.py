"""Made-up studies whose numbers look like a real one's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fasttransfer.study.cells import BASE_PLUS, Cell, study_cells
from fasttransfer.study.records import Evaluation, Records, Result, StudyResults

# What each treatment loses against a base at 0.74, from the first of a network's cuts to the last.
LOSSES = {
    "selffer": (-0.004, 0.0, 0.006, 0.027, 0.041, 0.018, 0.004),
    "selffer+": (-0.003, -0.006, -0.01, -0.012, -0.011, -0.009, -0.01),
    "transfer": (-0.002, 0.004, 0.014, 0.046, 0.081, 0.097, 0.123),
    "transfer+": (-0.004, -0.008, -0.014, -0.013, -0.015, -0.014, -0.017),
    "random": (0.13, 0.24, 0.36, 0.47, 0.55, 0.62, 0.66),
    "pretrained": (-0.01, -0.03, -0.05, -0.07, -0.09, -0.1, -0.08),
    "pretrained+": (-0.02, -0.04, -0.06, -0.09, -0.11, -0.13, -0.14),
}
PRETRAINED = ("pretrained", "pretrained+")
TREATMENTS = tuple(treatment for treatment in LOSSES if treatment not in PRETRAINED)
RESNET = ("conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "fc")


def lost(treatment: str, n: int, cuts: int) -> float:
    """What a treatment loses at cut `n` of a network that has `cuts`."""
    losses = LOSSES.get(treatment)
    return 0.0 if losses is None else float(np.interp((n - 1) / max(1, cuts - 1) * 6, range(7), losses))


def right(top1: float, seed: int, images: int = 640) -> bytes:
    """Which of `images` a network of `top1` got right, drawn at random, as `Result.correct` holds it."""
    return np.packbits(np.random.default_rng(seed).permutation(images) < round(top1 * images)).tobytes()


def made_up(
    targets: Sequence[str] = ("A", "B"),
    seeds: Sequence[int] = (0,),
    *,
    treatments: Sequence[str] = TREATMENTS,
    layers: Sequence[int] | None = None,
    stages: Sequence[str] = (),
    checks: int = 20,
    done: float = 1.0,
    diverged: Sequence[str] = (),
    missing: float = 0.0,
    base_plus: bool = True,
    correct: bool = False,
) -> StudyResults:
    """A study of which the first `done` is finished, one network is under way and the rest is planned.

    Args:
        targets, seeds, treatments, layers: of the grid; by default all cuts.
        stages: names of the network's stages; a study from before they were recorded lacks them and has eight.
        checks: of every network.
        done: share of the networks.
        diverged: names of networks.
        missing: what the bases had still to learn, in top-1; every network but them has learned it.
        base_plus: with base+; a study from before it lacks it.
        correct: with which validation images each network got right, drawn independently.
    """
    count = len(stages) or 8
    cells = study_cells(targets, treatments, range(1, count) if layers is None else layers, seeds, count)
    if not base_plus:
        cells = tuple(cell for cell in cells if cell.treatment != BASE_PLUS)
    finished = round(done * len(cells))
    results = []
    for i, cell in enumerate(cells):
        base = 0.74 + 0.03 * (cell.target == "B") + 0.006 * math.sin(3 * cell.seed)
        name, source = cell.name, cell.source
        loss = lost(cell.treatment, cell.n, count - 1)
        base -= missing * (cell.treatment == "base")
        top1 = base - loss * (1 + 0.1 * math.sin(7 * i)) + 0.003 * math.sin(5 * i + cell.seed)
        state = "done" if i < finished else "running" if i == finished else "planned"
        length = {"done": checks, "running": checks // 3, "planned": 0}[state]
        if name in diverged:
            state, top1, length = "diverged", 1 / 16, checks // 2
        found = tuple(
            Evaluation(
                step=50 * k,
                train_loss=None if k == 0 else 2.5 * math.exp(-3 * k / checks),
                val_loss=2.77 * math.exp(-2 * k / checks) + 0.4,
                val_top1=round(640 * (top1 + (1 / 16 - top1) * math.exp(-6 * k / checks))) / 640,
            )
            for k in range(1, length + 1)
        )
        results.append(
            Result(
                name=name,
                treatment=cell.treatment,
                target=cell.target,
                source=source,
                n=cell.n,
                seed=cell.seed,
                state=state,
                steps=50 * length,
                evaluations=found,
                reason="loss is not a number" if state == "diverged" else "",
                correct=right(found[-1].val_top1, i) if correct and state == "done" else None,
            )
        )
    return StudyResults(
        folder=Path("runs/made-up"),
        study={
            "data": "builtin",
            "split": "natural-manmade",
            "seeds": list(seeds),
            "recipe": {
                "name": "mini",
                "batch": 64,
                "geometry": {"name": "caffenet-mini", "channels": [24, 64, 96]},
            },
        },
        facts={
            "command": "fasttransfer grid --out runs/made-up",
            "classes": {
                "A": ["zebra-coat", "tiger-coat", "cow-coat", "giraffe-coat", "otter-coat", "moss"]
                + [f"n{i:08d}" for i in range(10)],
                "B": [f"thing-{i}" for i in range(16)],
            },
            "train_pictures": {"A": 4800, "B": 4800},
            "val_pictures": {"A": 640, "B": 640},
            "synthetic": True,
            **({"stages": list(stages)} if stages else {}),
            "words": {f"n{i:08d}": f"plant no. {i} <leaf>" for i in range(10)},
        },
        results=tuple(results),
        environment={"python": "3.11.9", "torch": "2.15.0", "cpu": "two cores", "fasttransfer": "0.1.0"},
        events=(("2025-01-01T10:00:00+00:00", "", "started"), ("2025-01-01T10:04:00+00:00", "baseA", "done")),
    )


def on_disk(recorded: StudyResults, folder: Path) -> Path:
    """The study as a grid leaves it, with the first layer of a base."""
    (folder / "weights").mkdir(parents=True)
    (folder / "study.toml").write_text(f'split = "{recorded.study["split"]}"\n', encoding="utf-8")
    cells = {Cell(r.seed, r.target, r.treatment, r.n): r for r in recorded.results}
    with Records(folder / "study.db") as records:
        records.plan(cells)
        records.describe(recorded.facts, recorded.environment)
        for cell, result in cells.items():
            records.record_checks((cell, check) for check in result.evaluations)
            records.end_cell(cell, result.state, result.steps)
    save_file({"conv1.weight": np.ones((8, 3, 5, 5), np.float32)}, folder / "weights" / "baseB.s0.safetensors")
    return folder
