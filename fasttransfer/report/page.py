"""The page of a study: one file that needs neither network nor script, and says how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fasttransfer.pipelines.views import describe_views
from fasttransfer.report import figures
from fasttransfer.report.analysis import (
    BOOST,
    FROZEN_COST,
    Decomposition,
    Score,
    Summary,
    decompose,
    score_of,
    summarise,
)
from fasttransfer.report.cautions import cautions
from fasttransfer.report.drawing import STYLES, layer_colour
from fasttransfer.report.filters import first_filters, smoothness
from fasttransfer.report.findings import findings
from fasttransfer.report.html_tables import blocks
from fasttransfer.report.numbers import count, decimals, intervals, per_cent, points, task_title
from fasttransfer.report.template import SCORES, LegendKey, element, part_keys, render, treatment_keys
from fasttransfer.report.verdict import verdict
from fasttransfer.study.records import Result, StudyResults


def page(recorded: StudyResults, score: Score = "last", overlay: StudyResults | None = None) -> str:
    """The whole of index.html. `score` is what means and figures are made of; single networks show both.

    `overlay` is the part of the paper whose curves are laid behind the study's.
    """
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    decomposition = decompose(recorded, summary)
    done = sum(result.trained for result in recorded.results)
    drawn: dict[str, Any] = {
        "accuracy": _accuracy(recorded, summary, overlay),
        "decomposition": _decomposition(recorded, summary, decomposition),
        "numbers": blocks(recorded, summary) if done else [],
        "learning": _learning(recorded),
        "filters": _filters(recorded),
    }
    return render(
        "page.html.j2",
        **drawn,
        sections=[(name, title, name not in drawn or drawn[name]) for name, title in _SECTIONS.items()],
        name=recorded.folder.name or str(recorded.folder),
        facts_line=_facts_line(recorded, summary),
        synthetic=bool(recorded.facts.get("synthetic")),
        done=done,
        total=len(recorded.results),
        verdict=verdict(recorded, score),
        findings=findings(recorded, score),
        warnings=cautions(recorded, summary),
        score=SCORES[score],
        keys=_keys(summary, overlay),
        overlaid=_overlaid(overlay),
        intervals=_intervals(recorded, summary),
        parts_equal=decomposition.is_equal,
        part_keys=part_keys(decomposition.first),
        smoothness=_smoothness(recorded),
        layer_keys=_layer_keys(recorded),
        networks=_networks(recorded),
        several_seeds=len(summary.seeds) > 1,
        precision=_precision(recorded, summary),
        tasks=_tasks(recorded),
        configuration=list(_flat({**recorded.study, "views": describe_views(recorded.study)})),
        environment=sorted(recorded.environment.items()),
        events=recorded.events,
        command=recorded.facts.get("command", ""),
    )


_SECTIONS = {
    "accuracy": "Accuracy",
    "decomposition": "What frozen transfer costs",
    "numbers": "Numbers",
    "learning": "Learning curves",
    "filters": "Filters",
    "networks": "Networks",
    "made": "How it was made",
    "cite": "How to cite",
}


def _facts_line(recorded: StudyResults, summary: Summary) -> list[str]:
    study = recorded.study
    recipe = study.get("recipe", {})
    geometry = recipe.get("geometry", {}) if isinstance(recipe, Mapping) else {}
    named = {
        "images": Path(str(study.get("data", ""))).name,
        "split": study.get("split"),
        "recipe": recipe.get("name") if isinstance(recipe, Mapping) else recipe,
        "network": geometry.get("name") if isinstance(geometry, Mapping) else geometry,
        "views": describe_views(study),
    }
    line = [f"{what}: {value}" for what, value in named.items() if value]
    if summary.seeds:
        line.append(count(len(summary.seeds), "seed"))
    return line


def _networks(recorded: StudyResults) -> list[dict[str, Any]]:
    bases = {(r.target, r.seed): score_of(r) for r in recorded.results if r.treatment == "base"}

    def row(result: Result) -> dict[str, Any]:
        digits = decimals(recorded.facts, [result.target])
        base, own = bases.get((result.target, result.seed)), score_of(result)
        paired = None if base is None or own is None or result.treatment == "base" else own - base
        return {
            "name": result.name,
            "treatment": result.treatment,
            "target": result.target,
            "n": result.n,
            "seed": result.seed,
            "steps": f"{result.steps:,}",
            "last": _or_dash(result.last_top1, digits),
            "best10": _or_dash(result.best10_top1, digits),
            "difference": "–" if paired is None else points(paired, digits),
            "loss": "–"
            if result.last_loss is None or not math.isfinite(result.last_loss)
            else f"{result.last_loss:.2f}",
            "state": result.state,
            "reason": result.reason,
        }

    return [row(result) for result in recorded.results]


def _or_dash(value: float | None, digits: int) -> str:
    return "–" if value is None or not math.isfinite(value) else per_cent(value, digits)


def _precision(recorded: StudyResults, summary: Summary) -> str:
    """How far one top-1 can be trusted for the number of validation images alone (binomial, 95 %)."""
    told = []
    for target in summary.targets:
        images = recorded.facts.get("val_pictures", {}).get(target)
        base = summarise(recorded.results, score=summary.score, target=target).base
        if images and base is not None and 0 < base.value < 1:
            spread = 196 * math.sqrt(base.value * (1 - base.value) / images)
            told.append(
                f"Of task {target}'s {images:,} validation images each is worth {100 / images:.2g} "
                f"points; another such set would move its base by ± {spread:.2g} (95 %)."
            )
    if told:
        told.append("Networks are compared on the same images: their differences are sharper than that.")
    return " ".join(told)


def _tasks(recorded: StudyResults) -> list[dict[str, Any]]:
    words = recorded.facts.get("words", {})
    return [
        {
            "title": task_title(recorded, task),
            "train": recorded.facts.get("train_pictures", {}).get(task),
            "val": recorded.facts.get("val_pictures", {}).get(task),
            "classes": [words.get(name, name) for name in classes],
        }
        for task, classes in sorted(recorded.facts.get("classes", {}).items())
    ]


def _intervals(recorded: StudyResults, summary: Summary) -> str:
    """What the ± of the page are made of; empty where there is none."""
    shown = [(*row.difference.values(), row[FROZEN_COST], row[BOOST]) for row in summary.rows]
    return intervals(
        [estimate for row in shown for estimate in row if estimate], recorded.facts.get("seeds_are", "seeds")
    )


def _smoothness(recorded: StudyResults) -> list[str]:
    """How far the filters of each base are from the noise that they began as."""
    return [
        f"base{task}: neighbouring weights correlate by {smoothness(weights):.2f}; those of independent initial values "
        "by 0.00."
        for task, weights in first_filters(recorded).items()
    ]


def _keys(summary: Summary, overlay: StudyResults | None) -> list[LegendKey]:
    keys = treatment_keys(figures.across(summary).union(*(row.top1 for row in summary.rows)))
    if overlay is not None:
        keys.append(LegendKey("the paper's, in the same colours", "var(--faint)", swatch="behind"))
    return keys


def _overlaid(overlay: StudyResults | None) -> str:
    """What is laid behind, and what it lacks."""
    if overlay is None:
        return ""
    halves = "natural and man-made" if overlay.study.get("split") == "natural-manmade" else "random"
    ran = ", ".join(summarise(overlay.results).treatments)
    return (
        f"Broad and pale behind the differences: the paper's networks on {halves} halves of ImageNet ({ran}), as "
        "published. Its images and the length of its training were others: compare the shapes."
    )


def _layer_keys(recorded: StudyResults) -> list[LegendKey]:
    keys = [LegendKey(f"n = {n}", layer_colour(n)) for n in figures.layers_of(recorded)]
    if len(tasks := figures.curve_tasks(recorded)) > 1:
        keys += [LegendKey(f"task {tasks[0]}", "var(--ink)"), LegendKey(f"task {tasks[1]}", "var(--ink)", "dashed")]
    return keys


def _accuracy(recorded: StudyResults, summary: Summary, overlay: StudyResults | None) -> list[Markup]:
    if summary.base is None and not any(row.top1 for row in summary.rows):
        return []
    drawn = [
        element(
            figures.accuracy(recorded, summary.score, target=target, keys=False),
            f"top1-{target}",
            f"Top-1 against n on task {target}",
        )
        for target in summary.targets
    ]
    if summary.rows:
        figure = figures.differences(recorded, summary.score, overlay=overlay, keys=False)
        drawn.append(element(figure, "differences", "Difference of top-1 from the base against n"))
    return drawn


def _decomposition(recorded: StudyResults, summary: Summary, found: Decomposition) -> list[Markup]:
    if not found.complete:
        return []
    chosen: Sequence[str | None] = [*summary.targets, None] if len(summary.targets) > 1 else [None]
    return [
        element(
            figures.decomposition(recorded, summary.score, target=target, keys=False),
            f"parts-{target or 'mean'}",
            f"Points lost to {found.first.name} and to specificity against n, {f'task {target}' if target else 'mean'}",
        )
        for target in chosen
    ]


def _learning(recorded: StudyResults) -> list[Markup]:
    return [
        element(
            figures.learning(recorded, treatment, keys=False),
            f"learning-{treatment.replace('+', '-plus')}",
            f"Validation top-1 against steps, {STYLES[treatment].label}",
        )
        for treatment in figures.curves_of(recorded)
    ]


def _filters(recorded: StudyResults) -> list[Markup]:
    return [
        element(figures.filters(recorded, target=task), f"filters-{task}", f"Filters of conv1 of base{task}")
        for task in first_filters(recorded)
    ]


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{above}{name}", ", ".join(map(str, value))
        else:
            yield f"{above}{name}", str(value).lower() if isinstance(value, bool) else str(value)
