"""The pages with several studies: any studies side by side, and the paper's own results."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from markupsafe import Markup
from matplotlib.figure import Figure

from fasttransfer.core.intervals import Estimate
from fasttransfer.report import figures
from fasttransfer.report.analysis.comparison import Comparison, compare, runs_by_volume
from fasttransfer.report.analysis.effects import FROM_BASE, NOT_COUNTED, PARTS, WORTHS, Effect
from fasttransfer.report.analysis.summary import Summary, decompose, summarise
from fasttransfer.report.cautions import cautions, warnings
from fasttransfer.report.drawing import STYLES, Style, part_styles, study_styles, treatment_styles
from fasttransfer.report.findings import findings
from fasttransfer.report.html_tables import HtmlTable, TableCell, summary_tables
from fasttransfer.report.numbers import count, networks, per_cent, signed
from fasttransfer.report.svg import INK
from fasttransfer.report.template import BOTH_TOGETHER, SCORES, element, render
from fasttransfer.report.verdict import verdict
from fasttransfer.study import paper
from fasttransfer.study.records import Score, StudyResults

_FIGURE_3 = ("transfer", "random")  # the treatments of the paper's figure 3
_FROM_BASE = "Points of top-1 above or below the base of the same task and seed, the paper's comparison"
_BUDGETS = {  # how the training of a treatment and that of its base compare
    **{
        name: f": {name} has had one schedule of training more than its base"
        for name in ("selffer", "selffer+", "transfer+")
    },
    **{effect.left: f": {NOT_COUNTED}" for effect in WORTHS},
}


@dataclass(frozen=True)
class ComparisonSection:
    """A part of the page."""

    id: str
    title: str
    lead: str
    figures: Sequence[Markup] = ()
    keys: Sequence[Style] = ()
    tables: Sequence[HtmlTable] = ()


def comparison_page(comparison: Comparison, *, command: str) -> str:
    """Return the page of studies side by side; `command` makes it again."""
    score, studies = comparison.score, comparison.by_name
    parts = comparison.parts
    if len(parts) == 1:
        sections = _sections(parts[0])
    else:
        sections = [one for i, part in enumerate(parts, start=1) for one in _sections(part, f"-{i}", _of(part))]
    of_each = zip(studies.items(), comparison.summaries, strict=True)
    all_cautions = [f"{name}: {caution}" for (name, study), summary in of_each for caution in cautions(study, summary)]
    judged = {name: verdict(study, score) for name, study in studies.items()}
    return render(
        "side_by_side.html.j2",
        title="Studies side by side",
        facts_line=[*studies, f"score: {SCORES[score]}"],
        verdicts=[replace(one, text=f"{name}: {one.text}") for name, one in judged.items() if one is not None],
        findings=[],
        warnings=[*comparison.notes, *all_cautions],
        sections=sections,
        command=command,
    )


def _of(part: Comparison) -> str:
    return f": {' and '.join(part.names)}"


def _sections(part: Comparison, mark: str = "", of: str = "") -> list[ComparisonSection]:
    """Return the sections on studies of one network.

    Args:
        mark: what tells its ids from those of other networks; of: the same for titles.
    """
    score, studies, word = part.score, part.by_name, part.groups[0].stages.word
    sections = []
    if tables := _tables(part, PARTS):
        lead = (
            f"Points of top-1 between networks that have had the same training: what freezing the task's own {word}s "
            "costs, what it costs that they are the other task's, and what fine-tuning leaves of having seen the other "
            "task."
        )
        sections.append(ComparisonSection(f"equal{mark}", f"At equal training{of}", lead, tables=tables))
    if tables := _tables(part, WORTHS):
        lead = (
            f"Points of top-1 between networks whose first n {word}s are those of pretrained weights and networks "
            f"whose first n {word}s are the task's own, with the same training behind them here. But {NOT_COUNTED}."
        )
        title = f"What the pretrained weights are worth{of}"
        sections.append(ComparisonSection(f"worth{mark}", title, lead, tables=tables))
    if part.lines:
        sections.append(_transfer_section(part, mark, of))
    for treatment, effect in FROM_BASE.items():
        if treatment not in _FIGURE_3 and (tables := _tables(part, [effect])):
            figure = partial(figures.comparison, studies, score, treatments=(treatment,), keys=False)
            name = treatment.replace("+", "-plus") + mark
            drawn = element(figure, name, f"Difference from the base of {treatment} networks{of}")
            lead = f"{_FROM_BASE}{_BUDGETS.get(treatment, '')}."
            styles = [style for study, style in study_styles(studies).items() if study in tables[0].heads]
            sections.append(ComparisonSection(name, f"{tables[0].caption}{of}", lead, [drawn], styles, tables))
    if part.volumes:
        sections.append(_volume_section(part.studies, score, mark, of))
    return sections


def paper_page(score: Score = "best10") -> str:
    """Return the page of the paper's figures 2 and 3 and of fewer images, from its published results alone."""
    halves, full = paper.load_results("random"), paper.load_results("full")
    summary, comparison = summarise(halves.results, score=score, facts=halves.facts), _paper_comparison(score)
    dissimilar = (
        replace(finding, text=f"Between natural and man-made classes: {finding.text[0].lower()}{finding.text[1:]}")
        for finding in findings(paper.load_results("natural-manmade"), score)[:1]
    )
    return render(
        "side_by_side.html.j2",
        title="The paper's results, paired",
        facts_line=[
            count(len(paper.load_networks()), "published network"),
            "ILSVRC2012, CaffeNet, 450,000 steps",
            f"score: {SCORES[score]}",
        ],
        verdicts=[judged] if (judged := verdict(halves, score)) else [],
        findings=[*findings(halves, score), *dissimilar],
        warnings=[*cautions(halves, summary), *warnings(full, score), *comparison.notes],
        sections=[
            _halves_section(halves, summary),
            _transfer_section(comparison),
            _volume_section([paper.load_results("reduced")], score),
        ],
        command="fasttransfer report --paper" + ("" if score == "best10" else f" --score {score}"),
    )


def _paper_comparison(score: Score) -> Comparison:
    """Return the studies of the paper's figure 3, by the names that its text gives them."""
    parts: dict[str, paper.Which] = {
        "random halves": "random",
        "natural / man-made": "natural-manmade",
        "all 1000 classes": "full",
    }
    compared = compare([paper.load_results(part) for part in parts.values()], score)
    named = {f"paper:{part}": name for name, part in parts.items()}
    notes = [re.sub("|".join(named), lambda match: named[match[0]], note) for note in compared.notes]
    return replace(compared, names=tuple(parts), notes=tuple(notes))


def paper_figures(score: Score = "best10") -> dict[str, Callable[[], Figure]]:
    """Return the figures of `paper_page` to be written as files: name -> the function that draws it."""
    halves, compared = paper.load_results("random"), _paper_comparison(score)
    return {
        "accuracy": partial(figures.accuracy, halves, score, pooled=True),
        "differences": partial(figures.differences, halves, score),
        "decomposition": partial(figures.decomposition, halves, score),
        "comparison": partial(figures.comparison, compared.by_name, score),
        "volume": partial(figures.volume, [paper.load_results("reduced")], score),
    }


def _halves_section(halves: StudyResults, summary: Summary) -> ComparisonSection:
    score = summary.score
    parts = part_styles(decompose(halves, summary).first, BOTH_TOGETHER)
    top1, equal, from_base = summary_tables(halves, summary)
    top1 = replace(top1, caption="Top-1 in per cent; smaller, points from the base, paired")
    top1_figure = partial(figures.accuracy, halves, score, pooled=True, keys=False)
    paired = partial(figures.differences, halves, score, keys=False)
    pieces = partial(figures.decomposition, halves, score, keys=False)
    return ComparisonSection(
        "halves",
        "Random halves (the paper's figure 2)",
        "First as the paper plots it: every network a dot, all eight halves together. The halves differ in difficulty "
        "by more than most treatments do, and not every network was trained on every half, so these means are in part "
        "the difficulty of the halves that were run. Then the same networks paired: each minus the base of its own "
        "half; bars are 95 % intervals. Last, what frozen transfer loses, in the paper's pieces, from the base: most "
        "halves have no fine-tuned selffer, which a comparison at equal training takes. Each piece is over the halves "
        "that have both networks.",
        [
            element(top1_figure, "top1", "Top-1 against n, random halves"),
            element(paired, "paired", "Paired differences, random halves"),
            element(pieces, "parts", "Co-adaptation and specificity, by n"),
        ],
        [*treatment_styles(["base", *summary.treatments]), *parts],
        [top1, from_base, equal],
    )


def _transfer_section(comparison: Comparison, mark: str = "", of: str = "") -> ComparisonSection:
    score, studies, word = comparison.score, comparison.by_name, comparison.groups[0].stages.word
    figure = partial(figures.comparison, studies, score, keys=False)
    label = f"Difference from the base of frozen transfer and random networks{of}"
    drawn = [element(figure, f"transfer-random{mark}", label)]
    if sum(any("transfer" in row.difference for row in summary.rows) for summary in comparison.summaries) > 1:
        alone = partial(figures.comparison, studies, score, treatments=("transfer",), keys=False)
        label = f"Difference from the base of frozen transfer networks{of}"
        drawn.append(element(alone, f"transfer-alone{mark}", label))
    lines = [Style("frozen transfer", INK), Style(f"frozen random {word}s", INK, line=":")]
    return ComparisonSection(
        f"transfer{mark}",
        f"Transfer and random {word}s (the paper's figure 3){of}",
        "Points of top-1 above or below the base of the same task and seed, so that studies on different classes and "
        "images can be laid over each other. In the paper, the further apart two tasks are, the earlier their frozen "
        "layers cost.",
        drawn,
        [*study_styles(studies).values(), *lines],
        _tables(comparison, [FROM_BASE[treatment] for treatment in _FIGURE_3]),
    )


def _tables(comparison: Comparison, effects: Sequence[Effect]) -> list[HtmlTable]:
    """Return a table for each of `effects` that some study of one network has, and how far each is from the first one.

    Columns without a number are left out.
    """
    heads = (*comparison.names, *(f"{name} − {comparison.names[0]}" for name in comparison.names))
    stages = comparison.groups[0].stages
    tables = []
    for effect in effects:
        rows = {line.n: (*line.estimates, *line.apart) for line in comparison.lines if line.effect == effect}
        columns = [i for i in range(len(heads)) if any(row[i] for row in rows.values())]
        cells = tuple((stages.label(n), tuple(_cell(row[i]) for i in columns)) for n, row in rows.items())
        title = STYLES[effect.left].label if effect.is_from_base else f"{effect.name}: {networks(effect)}"
        if cells:
            tables.append(HtmlTable(title[0].upper() + title[1:], (stages.head, *(heads[i] for i in columns)), cells))
    return tables


def _cell(estimate: Estimate | None) -> TableCell:
    return TableCell() if estimate is None else TableCell(signed(estimate))


def _volume_section(studies: Sequence[StudyResults], score: Score, mark: str = "", of: str = "") -> ComparisonSection:
    points = runs_by_volume(studies, score)
    rows = tuple(
        (f"{images:,}", tuple(_volume_cell(points[task].get(images, [])) for task in points))
        for images in sorted({k for runs in points.values() for k in runs})
    )
    figure = partial(figures.volume, studies, score, keys=False)
    several = [f"task {task}" for task in points] if len(points) > 1 else ["top-1"]
    return ComparisonSection(
        f"volume{mark}",
        f"Fewer images{of}",
        "Top-1 of base networks trained on the first so many images of each class. A cross is a network that ended "
        "no better than chance: its training failed, which says nothing about what that many images are worth.",
        [element(figure, f"volume{mark}", f"Top-1 against training images per class{of}")],
        list(study_styles(several).values()) if len(points) > 1 else [],
        [HtmlTable("Top-1 of the bases, in per cent", ("images per class", *several), rows)],
    )


def _volume_cell(runs: Sequence[tuple[float, bool]]) -> TableCell:
    if not runs:
        return TableCell()
    note = "no better than chance" if all(is_lost for _, is_lost in runs) else ""
    return TableCell(per_cent(fmean(top1 for top1, _ in runs)), runs=note)
