"""results.csv, a row per network, and means.csv, a row per mean, for other programs to read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from fasttransfer.pipelines.views import describe_views
from fasttransfer.report.analysis.effects import GAIN
from fasttransfer.report.analysis.summary import summarise
from fasttransfer.report.stages import Stages
from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.chance import class_count, mean_chance, share_at_chance, stuck
from fasttransfer.study.records import Result, Score, StudyResults

COLUMNS = (
    "name", "treatment", "source", "target", "n", "seed", "state", "steps", "val_top1", "val_top1_best10",
    "val_loss", "base_top1", "difference_to_base", "base_top1_best10", "difference_to_base_best10", "classes", "chance",
    "share_at_chance", "stuck", "reason", "views", "stage",
)  # fmt: skip
MEANS = ("study", "n", "what", "mean", "half_interval_95", "interval", "runs", "seeds", "stage")


def results_csv(recorded: StudyResults) -> str:
    """Return every network of the study, in its order. Scores lie in [0, 1]; a field without a value yet is empty.

    `val_top1` is the last check of whatever was trained so far, `state` says whether that was all;
    the differences are there only once both networks are done, each paired with the base of its own target and seed.
    `share_at_chance` is the share of training spent at the loss of an even guess, `stuck` whether that is too much.
    `stage` is the name of stage n, the last that was copied; empty where the study does not record it.
    """
    stages = Stages.of(recorded.facts)
    bases = {(r.target, r.seed): r for r in recorded.results if r.treatment == BASE}
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in recorded.results:
        base = bases.get((result.target, result.seed))
        classes = class_count(recorded.facts, result.target)
        row: dict[str, Any] = {
            **{name: getattr(result, name) for name in COLUMNS[:8]},
            "val_top1": _number(result.last_top1),
            "val_top1_best10": _number(result.best10_top1),
            "val_loss": _number(result.last_loss),
            **_paired(result, base, "last", ""),
            **_paired(result, base, "best10", "_best10"),
            "classes": classes,
            "chance": _number(mean_chance(recorded.facts, [result.target])),
            "share_at_chance": f"{share_at_chance(result, classes):.3f}" if classes and result.evaluations else None,
            "stuck": int(stuck(result, classes)) if classes and result.trained else None,
            "reason": result.reason,
            "views": describe_views(recorded.study),
            "stage": stages.name(result.n),
        }
        writer.writerow(row)
    return out.getvalue()


def means_csv(studies: Mapping[str, StudyResults], score: Score = "last") -> str:
    """Return the effects that studies have, for each n over targets and seeds, in [-1, 1].

    `half_interval_95` is half the width of the 95 % interval, empty where the runs give none; `interval` says what it
    is made of (`Estimate.kind`), `runs` and `seeds` how many are behind the mean. Parts are over the runs that have
    all their networks, so that they add up. base+ has the number of all stages as n.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(MEANS)
    for name, recorded in studies.items():
        summary = summarise(recorded.results, score=score, facts=recorded.facts)
        means = [(row.n, effect, mean) for row in summary.rows for effect, mean in row.effects.items()]
        if summary.gain is not None:
            whole = next(result.n for result in recorded.results if result.treatment == BASE_PLUS)
            means = [(whole, GAIN, summary.gain), *means]
        for n, effect, mean in means:
            numbers = f"{mean.value:.6f}", _number(mean.half), mean.kind, mean.runs, mean.seeds
            writer.writerow((name, n, effect.networks, *numbers, Stages.of(recorded.facts).name(n)))
    return out.getvalue()


def _paired(result: Result, base: Result | None, score: Score, suffix: str) -> dict[str, str | None]:
    own, other = result.score(score), base.score(score) if base else None
    return {
        f"base_top1{suffix}": _number(other),
        f"difference_to_base{suffix}": _number(None if own is None or other is None else own - other),
    }


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"
