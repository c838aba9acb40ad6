"""results.csv: one row a network, for whoever wants to compute something else."""

from __future__ import annotations

import csv
import io
from typing import Any

from fasttransfer.analysis import chance, score_of
from fasttransfer.records import Recorded

COLUMNS = (
    "name", "treatment", "source", "target", "n", "seed", "state", "steps", "val_top1", "val_top1_best10",
    "val_loss", "base_top1", "difference_to_base", "classes", "chance",
)  # fmt: skip


def results_csv(recorded: Recorded) -> bytes:
    """Every network of the study, in its order. Scores in [0, 1]; a field that has no value yet is empty.

    `val_top1` is the last check of whatever was trained so far, `state` says whether that was all;
    `difference_to_base` is there only once both networks are done.
    """
    bases = {
        (result.target, result.seed): score_of(result) for result in recorded.results if result.treatment == "base"
    }
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in recorded.results:
        base, own = bases.get((result.target, result.seed)), score_of(result)
        row: dict[str, Any] = {
            "name": result.name,
            "treatment": result.treatment,
            "source": result.source,
            "target": result.target,
            "n": result.n,
            "seed": result.seed,
            "state": result.state,
            "steps": result.steps,
            "val_top1": _number(result.last_top1),
            "val_top1_best10": _number(result.best10_top1),
            "val_loss": _number(result.last_loss),
            "base_top1": _number(base),
            "difference_to_base": _number(None if base is None or own is None else own - base),
            "classes": len(recorded.facts.get("classes", {}).get(result.target, ())) or None,
            "chance": _number(chance(recorded.facts, result.target)),
        }
        writer.writerow(row)
    return out.getvalue().encode()


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"
