"""The page of a study: one file that needs neither network nor script, and says how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fasttransfer.analysis import Estimate, Score, Summary, chance, score_of, summarise
from fasttransfer.records import Recorded, Result
from fasttransfer.report import figures
from fasttransfer.report.findings import findings
from fasttransfer.report.numbers import cost, count, decimals, half, label, per_cent, points
from fasttransfer.report.svg import inline

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["tied"] = lambda text: text.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")
_SCORES = {"last": "the last validation check", "best10": "the mean of the ten best validation checks"}
_GLYPHS = {"o": ("●", "○"), "s": ("■", "□"), "D": ("◆", "◇"), "^": ("▲", "△")}  # marker: filled, hollow


@dataclass(frozen=True)
class _Cell:
    """What stands in one field of a table: a number, and in small print its difference and its runs."""

    main: str
    small: str = ""
    runs: str = ""  # only where fewer runs are behind it than the study plans


@dataclass(frozen=True)
class _Block:
    """The tables of one target, or of the mean over targets."""

    title: str
    base: str
    chance: str
    treatments: tuple[str, ...]
    top1: tuple[tuple[int, tuple[_Cell, ...]], ...]
    parts: tuple[tuple[int, tuple[_Cell, ...]], ...]


def page(recorded: Recorded, score: Score = "last") -> str:
    """The whole of index.html. `score` is what means and figures are made of; single networks show both."""
    summary = summarise(recorded.results, score=score)
    digits = decimals(recorded.facts, summary.targets)
    several = len(summary.targets) > 1
    blocks = [_block(recorded, summary, digits, "Mean of both tasks")] if several else []
    for target in summary.targets:
        alone = summarise(recorded.results, score=score, target=target)
        blocks.append(_block(recorded, alone, decimals(recorded.facts, [target]), _task(recorded, target)))
    states = [result.state for result in recorded.results]
    return _TEMPLATES.get_template("page.html.j2").render(
        name=recorded.folder.name or str(recorded.folder),
        facts_line=_facts_line(recorded, summary),
        synthetic=bool(recorded.facts.get("synthetic")),
        done=states.count("done"),
        total=len(states),
        findings=findings(recorded, score),
        warnings=_warnings(recorded, summary),
        score=_SCORES[score],
        keys=_keys(summary),
        part_keys=figures.PART_COLOURS,
        layer_keys=_layer_keys(recorded),
        curve_tasks=figures.curve_tasks(recorded),
        accuracy=_accuracy_figures(recorded, summary),
        parts=_parts_figures(recorded, summary),
        learning=_learning_figures(recorded),
        blocks=blocks,
        networks=_networks(recorded),
        several_seeds=len(summary.seeds) > 1,
        precision=_precision(recorded, summary),
        tasks=_tasks(recorded),
        configuration=list(_flat(recorded.study)),
        environment=sorted(recorded.environment.items()),
        events=recorded.events,
        command=recorded.facts.get("command", ""),
    )


def _facts_line(recorded: Recorded, summary: Summary) -> list[str]:
    study = recorded.study
    recipe = study.get("recipe", {})
    geometry = recipe.get("geometry", {}) if isinstance(recipe, Mapping) else {}
    named = {
        "pictures": Path(str(study.get("data", ""))).name,
        "split": study.get("split"),
        "recipe": recipe.get("name") if isinstance(recipe, Mapping) else recipe,
        "network": geometry.get("name") if isinstance(geometry, Mapping) else geometry,
    }
    line = [f"{what}: {value}" for what, value in named.items() if value]
    if summary.seeds:
        line.append(count(len(summary.seeds), "seed"))
    return line


def _warnings(recorded: Recorded, summary: Summary) -> list[str]:
    several = len(summary.seeds) > 1
    told = []
    if not several and any(row.top1 for row in summary.rows):
        told.append(
            "One seed: every number rests on a single run for each task, so it has no interval and small "
            "differences may be chance. More seeds give intervals."
        )
    failed: dict[str, list[str]] = {}
    for result in recorded.results:
        if result.state == "diverged":
            failed.setdefault(result.reason, []).append(label(result, several))
    for reason, names in failed.items():
        why = f": {reason}" if reason else ""
        told.append(f"Diverged, left out of every mean, drawn as a cross: {', '.join(names)}{why}.")
    waiting = [result for result in recorded.results if result.state not in ("done", "diverged")]
    if waiting:
        first = ", ".join(label(result, several) for result in waiting[:8])
        more = f" and {len(waiting) - 8} more" if len(waiting) > 8 else ""
        told.append(f"Unfinished, not counted in any mean: {first}{more}.")
    if recorded.facts.get("held_out"):
        told.append("The source has no validation pictures: they were cut from its training pictures.")
    if refused := recorded.facts.get("refused"):
        told.append(f"{count(refused, 'picture')} could not be decoded and took no part.")
    return told


def _block(recorded: Recorded, summary: Summary, digits: int, title: str) -> _Block:
    planned = len(summary.targets) * len(summary.seeds)
    levels = [level for target in summary.targets if (level := chance(recorded.facts, target)) is not None]
    level = math.fsum(levels) / len(levels) if levels else None

    def runs(estimate: Estimate) -> str:
        return "" if estimate.runs == planned else f"{estimate.runs} of {planned} runs"

    def top1(estimate: Estimate | None, difference: Estimate | None) -> _Cell:
        if estimate is None:
            return _Cell("–")
        small = points(difference.value, digits) + half(difference, digits) if difference else ""
        return _Cell(per_cent(estimate.value, digits), small, runs(estimate))

    def part(estimate: Estimate | None) -> _Cell:
        return _Cell("–") if estimate is None else _Cell(cost(estimate, digits), "", runs(estimate))

    def boost(estimate: Estimate | None) -> _Cell:
        if estimate is None:
            return _Cell("–")
        return _Cell(points(estimate.value, digits) + half(estimate, digits), "", runs(estimate))

    return _Block(
        title=title,
        base=per_cent(summary.base.value, digits) + half(summary.base, digits) if summary.base else "",
        chance="" if level is None else per_cent(level, digits),
        treatments=summary.treatments,
        top1=tuple(
            (row.n, tuple(top1(row.top1.get(name), row.difference.get(name)) for name in summary.treatments))
            for row in summary.rows
        ),
        parts=tuple(
            (
                row.n,
                (
                    part(row.lost), part(row.co_adaptation), part(row.specificity),
                    boost(row.boost), boost(row.boost_over_selffer),
                ),
            )
            for row in summary.rows
        ),
    )  # fmt: skip


def _networks(recorded: Recorded) -> list[dict[str, Any]]:
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


def _precision(recorded: Recorded, summary: Summary) -> str:
    """How far one top-1 can be trusted for the number of validation pictures alone (binomial, 95 %)."""
    told = []
    for target in summary.targets:
        pictures = recorded.facts.get("val_pictures", {}).get(target)
        base = summarise(recorded.results, score=summary.score, target=target).base
        if pictures and base is not None and 0 < base.value < 1:
            spread = 196 * math.sqrt(base.value * (1 - base.value) / pictures)
            told.append(
                f"Of task {target}'s {pictures:,} validation pictures each is worth {100 / pictures:.2g} "
                f"points; another such set would move its base by ± {spread:.1g} (95 %)."
            )
    if told:
        told.append("Networks are compared on the same pictures: their differences are sharper than that.")
    return " ".join(told)


def _tasks(recorded: Recorded) -> list[dict[str, Any]]:
    words = recorded.facts.get("words", {})
    return [
        {
            "title": _task(recorded, task),
            "train": recorded.facts.get("train_pictures", {}).get(task),
            "val": recorded.facts.get("val_pictures", {}).get(task),
            "classes": [words.get(name, name) for name in classes],
        }
        for task, classes in sorted(recorded.facts.get("classes", {}).items())
    ]


def _task(recorded: Recorded, target: str) -> str:
    classes = recorded.facts.get("classes", {}).get(target)
    return f"Task {target}" + (f", {len(classes)} classes" if classes else "")


def _keys(summary: Summary) -> list[dict[str, str]]:
    drawn = {"base"}.union(*(row.top1 for row in summary.rows))
    keys = []
    for name, style in figures.STYLES.items():
        if name in drawn:
            line = "dashed" if name == "base" else {"-": "solid", "--": "dashed", ":": "dotted"}[style.line]
            glyph = _GLYPHS[style.marker][0 if style.filled else 1]
            colour = "var(--ink)" if name == "base" else style.colour
            keys.append({"label": style.label, "line": line, "glyph": glyph, "colour": colour})
    return keys


def _layer_keys(recorded: Recorded) -> list[tuple[int, str]]:
    return [(n, figures.layer_colour(n)) for n in sorted({r.n for r in recorded.results if r.n})]


def _accuracy_figures(recorded: Recorded, summary: Summary) -> list[Markup]:
    if summary.base is None and not any(row.top1 for row in summary.rows):
        return []
    drawn = [
        inline(
            figures.top1(recorded, target, summary.score),
            f"top1-{target}",
            f"Top-1 against n on task {target}",
        )
        for target in summary.targets
    ]
    if summary.rows:
        figure = figures.differences(recorded, summary.score)
        drawn.append(inline(figure, "differences", "Difference of top-1 from the base against n"))
    return [Markup(text) for text in drawn]


def _parts_figures(recorded: Recorded, summary: Summary) -> list[Markup]:
    if not any(row.lost and row.co_adaptation and row.specificity for row in summary.rows):
        return []
    chosen: Sequence[str | None] = [*summary.targets, None] if len(summary.targets) > 1 else [None]
    return [
        Markup(
            inline(
                figures.parts_of(recorded, target, summary.score),
                f"parts-{target or 'mean'}",
                f"Points lost by parts against n, {f'task {target}' if target else 'mean'}",
            )
        )
        for target in chosen
    ]


def _learning_figures(recorded: Recorded) -> list[Markup]:
    return [
        Markup(
            inline(
                figures.learning_of(recorded, treatment),
                f"learning-{treatment.replace('+', '-plus')}",
                f"Validation top-1 against steps, {treatment}",
            )
        )
        for treatment in figures.curves_of(recorded)
    ]


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{above}{name}", ", ".join(map(str, value))
        else:
            yield f"{above}{name}", str(value).lower() if isinstance(value, bool) else str(value)
