"""The page of a study: one file that needs neither network nor script, and says how far it can be trusted."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fasttransfer.core.toml import flatten
from fasttransfer.pipelines.views import describe_views
from fasttransfer.report import figures
from fasttransfer.report.analysis.comparison import network_name
from fasttransfer.report.analysis.effects import BOOST, FROZEN_COST, NOT_COUNTED, WORTHS
from fasttransfer.report.analysis.summary import Decomposition, Summary, decompose, summarise
from fasttransfer.report.cautions import cautions
from fasttransfer.report.drawing import BEHIND, STYLES, Style, part_styles, treatment_styles
from fasttransfer.report.filters import first_filters, smoothness
from fasttransfer.report.findings import findings
from fasttransfer.report.html_tables import blocks
from fasttransfer.report.numbers import count, decimals, intervals, points, task_title
from fasttransfer.report.stages import NO_OVERLAY, Stages
from fasttransfer.report.template import BOTH_TOGETHER, SCORES, element, render
from fasttransfer.report.verdict import verdict
from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.records import Score, StudyResults


def page(recorded: StudyResults, score: Score = "last", overlay: StudyResults | None = None) -> str:
    """Return the whole of index.html: means and figures of `score`, single networks with both scores.

    The curves of `overlay`, a part of the paper, are laid behind the study's if its network has the paper's stages.
    """
    stages = Stages.of(recorded.facts)
    is_left_out = overlay is not None and not stages.are_papers
    overlay = None if is_left_out else overlay
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    decomposition = decompose(recorded, summary)
    done = sum(result.trained for result in recorded.results)
    drawn: dict[str, Any] = _draw(recorded, summary, decomposition, overlay)
    drawn["numbers"] = blocks(recorded, summary) if done else []
    return render(
        "page.html.j2",
        **drawn,
        recorded=recorded,
        name=recorded.folder.name or str(recorded.folder),
        facts_line=_facts_line(recorded, summary),
        done=done,
        verdict=verdict(recorded, score),
        findings=findings(recorded, score),
        warnings=cautions(recorded, summary),
        score=SCORES[score],
        keys=_keys(summary, overlay),
        stages=stages,
        whole=next((r.n for r in recorded.results if r.treatment == BASE_PLUS), stages.cuts + 1),
        not_counted=NOT_COUNTED,
        worth_keys=figures.worth_styles(),
        overlay=overlay,
        overlay_note=NO_OVERLAY if is_left_out else "",
        overlay_ran=[] if overlay is None else summarise(overlay.results).treatments,
        intervals=_intervals(recorded, summary),
        parts_equal=decomposition.is_equal,
        part_keys=part_styles(decomposition.first, BOTH_TOGETHER),
        filter_layers=sorted({one.layer for one in first_filters(recorded).values()}),
        smoothness={task: smoothness(one.weights) for task, one in first_filters(recorded).items()},
        curve_keys=figures.curve_styles(recorded),
        networks=_networks(recorded),
        several_seeds=len(summary.seeds) > 1,
        precision=_precision(recorded, summary),
        task_titles={task: task_title(recorded, task) for task in recorded.facts.get("classes", {})},
        configuration=_configuration(recorded),
    )


def _facts_line(recorded: StudyResults, summary: Summary) -> list[str]:
    study = flatten(recorded.study)
    named = {
        "images": " and ".join(Path(str(study[key])).name for key in ("data", "data_b") if study.get(key)),
        "split": study.get("split"),
        "recipe": study.get("recipe.name"),
        "network": network_name(recorded),
        "views": describe_views(recorded.study),
    }
    line = [f"{what}: {value}" for what, value in named.items() if value]
    return [*line, count(len(summary.seeds), "seed")] if summary.seeds else line


def _networks(recorded: StudyResults) -> list[dict[str, Any]]:
    bases = {(r.target, r.seed): r.score("last") for r in recorded.results if r.treatment == BASE}
    rows = []
    for result in recorded.results:
        digits = decimals(recorded.facts, [result.target])
        base, own = bases.get((result.target, result.seed)), result.score("last")
        paired = None if base is None or own is None or result.treatment == BASE else own - base
        row = {
            "result": result,
            "last": _or_dash(result.last_top1, digits, 100),
            "best10": _or_dash(result.best10_top1, digits, 100),
            "difference": "–" if paired is None else points(paired, digits),
            "loss": _or_dash(result.last_loss, 2),
        }
        rows.append(row)
    return rows


def _or_dash(value: float | None, digits: int, scale: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{scale * value:.{digits}f}"


def _configuration(recorded: StudyResults) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(map(str, value))
        return str(value).lower() if isinstance(value, bool) else str(value)

    flat = flatten({**recorded.study, "views": describe_views(recorded.study)})
    return [(name, text(value)) for name, value in flat.items()]


def _precision(recorded: StudyResults, summary: Summary) -> str:
    """Return how far the number of validation images alone moves a top-1 (binomial, 95 %)."""
    lines = []
    for target, base in summary.bases.items():
        images = recorded.facts.get("val_pictures", {}).get(target)
        if images and 0 < base.value < 1:
            spread = 196 * math.sqrt(base.value * (1 - base.value) / images)
            lines.append(
                f"Of task {target}'s {images:,} validation images each is worth {100 / images:.2g} "
                f"points; another such set would move its base by ± {spread:.2g} (95 %)."
            )
    if lines:
        lines.append("Networks are compared on the same images: their differences are sharper than that.")
    return " ".join(lines)


def _intervals(recorded: StudyResults, summary: Summary) -> str:
    """Return a clause on what the ± of the page are made of; empty where there is none."""
    estimates = [one for row in summary.rows for one in (*row.difference.values(), row[FROZEN_COST], row[BOOST]) if one]
    return intervals(estimates, recorded.facts.get("seeds_are", "seeds"))


def _keys(summary: Summary, overlay: StudyResults | None) -> list[Style]:
    treatments = figures.across(summary).union(*(row.top1 for row in summary.rows))
    return [*treatment_styles(treatments), *([] if overlay is None else [BEHIND])]


def _draw(
    recorded: StudyResults, summary: Summary, parts: Decomposition, overlay: StudyResults | None
) -> dict[str, list[Markup]]:
    """Return section -> its figures."""
    drawn: dict[str, list[Markup]] = {
        name: [] for name in ("accuracy", "decomposition", "worth", "learning", "filters")
    }
    score, targets = summary.score, summary.targets
    if summary.base is not None or any(row.top1 for row in summary.rows):
        for target in targets:
            figure = partial(figures.accuracy, recorded, score, target=target, keys=False)
            drawn["accuracy"].append(element(figure, f"top1-{target}", f"Top-1 against n on task {target}"))
        if summary.rows:
            figure = partial(figures.differences, recorded, score, overlay=overlay, keys=False)
            label = "Difference of top-1 from the base against n"
            drawn["accuracy"].append(element(figure, "differences", label))
    if parts.complete:
        for one in (*targets, None) if len(targets) > 1 else (None,):
            figure = partial(figures.decomposition, recorded, score, target=one, keys=False)
            where = f"task {one}" if one else "mean"
            label = f"Points lost to {parts.first.name} and to specificity against n, {where}"
            drawn["decomposition"].append(element(figure, f"parts-{one or 'mean'}", label))
    if any(row[effect] for row in summary.rows for effect in WORTHS):
        figure = partial(figures.worth, recorded, score, keys=False)
        drawn["worth"].append(element(figure, "worth", "Points that the pretrained weights are worth against n"))
    for treatment in figures.curves_of(recorded):
        figure = partial(figures.learning, recorded, treatment, keys=False)
        label = f"Validation top-1 against steps, {STYLES[treatment].label}"
        drawn["learning"].append(element(figure, f"learning-{treatment.replace('+', '-plus')}", label))
    for task, found in first_filters(recorded).items():
        figure = partial(figures.filters, recorded, target=task)
        drawn["filters"].append(element(figure, f"filters-{task}", f"Filters of {found.layer} of base{task}"))
    return drawn
