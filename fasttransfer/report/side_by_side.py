"""Pages with several studies on them: any studies side by side, and the paper's own results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup
from matplotlib.figure import Figure

from fasttransfer.report import figures
from fasttransfer.report.analysis import (
    FROM_BASE,
    PARTS,
    Comparison,
    Effect,
    Estimate,
    Score,
    Summary,
    compare,
    decompose,
    summarise,
)
from fasttransfer.report.cautions import cautions
from fasttransfer.report.drawing import STYLES
from fasttransfer.report.findings import findings, warnings
from fasttransfer.report.html_tables import HtmlTable, TableCell, summary_tables
from fasttransfer.report.numbers import MINUS, count, per_cent, signed
from fasttransfer.report.template import SCORES, LegendKey, element, part_keys, render, study_keys, treatment_keys
from fasttransfer.report.verdict import Verdict, verdict
from fasttransfer.study import paper
from fasttransfer.study.records import StudyResults


@dataclass(frozen=True)
class ComparisonSection:
    """A part of the page."""

    id: str
    title: str
    lead: str
    figures: Sequence[Markup] = ()
    keys: Sequence[LegendKey] = ()
    tables: Sequence[HtmlTable] = ()


def comparison_page(comparison: Comparison, *, command: str) -> str:
    """The page of studies side by side; `command` makes it again."""
    score, studies = comparison.score, dict(zip(comparison.names, comparison.studies, strict=True))
    sections = [*_equal_section(comparison), *([_transfer_section(comparison)] if comparison.lines else [])]
    for treatment, effect in FROM_BASE.items():
        table = _table(comparison, effect, STYLES[treatment].label.capitalize())
        if table.rows and treatment not in ("transfer", "random"):
            figure = figures.comparison(studies, score, treatments=(treatment,), keys=False)
            name = treatment.replace("+", "-plus")
            drawn = element(figure, name, f"Difference from the base of {treatment} networks")
            lead = (
                "Points of top-1 above or below the base of the same task and seed, the paper's comparison: "
                f"{treatment} has had one schedule of training more than its base."
            )
            sections.append(
                ComparisonSection(name, table.caption, lead, [drawn], study_keys(studies, table.heads), [table])
            )
    if comparison.volumes:
        sections.append(_volume_section(comparison.studies, score))
    told = (
        f"{name}: {caution}"
        for (name, study), summary in zip(studies.items(), comparison.summaries, strict=True)
        for caution in cautions(study, summary)
    )
    return render(
        "side_by_side.html.j2",
        title="Studies side by side",
        facts_line=[*studies, f"score: {SCORES[score]}"],
        verdicts=_verdicts(studies, score),
        findings=[],
        warnings=[*comparison.notes, *told],
        sections=sections,
        command=command,
    )


def paper_page(score: Score = "best10") -> str:
    """The paper's figures 2 and 3 and its reduced-volume figure, from its published results alone."""
    halves, full = paper.load_results("random"), paper.load_results("full")
    summary, comparison = summarise(halves.results, score=score, facts=halves.facts), _paper_comparison(score)
    dissimilar = (
        replace(found, text=f"Between natural and man-made classes: {found.text[0].lower()}{found.text[1:]}")
        for found in findings(paper.load_results("natural-manmade"), score)[:1]
    )
    return render(
        "side_by_side.html.j2",
        title="The paper's results, paired",
        facts_line=[
            count(len(paper.load_networks()), "published network"),
            "ILSVRC2012, CaffeNet, 450,000 steps",
            f"score: {SCORES[score]}",
        ],
        verdicts=[told] if (told := verdict(halves, score)) else [],
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
    """The studies of the paper's figure 3, by the names that its text gives them."""
    parts: dict[str, paper.Which] = {
        "random halves": "random",
        "natural / man-made": "natural-manmade",
        "all 1000 classes": "full",
    }
    compared = compare([paper.load_results(part) for part in parts.values()], score)
    named = {f"paper:{part}": name for name, part in parts.items()}
    notes = tuple(_renamed(note, named) for note in compared.notes)
    return replace(compared, names=tuple(parts), notes=notes)


def _renamed(text: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text


def paper_figures(score: Score = "best10") -> dict[str, Figure]:
    """The figures of `paper_page` to be written as files: name -> figure."""
    halves, compared = paper.load_results("random"), _paper_comparison(score)
    return {
        "accuracy": figures.accuracy(halves, score, pooled=True),
        "differences": figures.differences(halves, score),
        "decomposition": figures.decomposition(halves, score),
        "comparison": figures.comparison(dict(zip(compared.names, compared.studies, strict=True)), score),
        "volume": figures.volume([paper.load_results("reduced")], score),
    }


def _halves_section(halves: StudyResults, summary: Summary) -> ComparisonSection:
    score = summary.score
    top1, equal, from_base = summary_tables(halves, summary)
    top1 = replace(top1, caption="Top-1 in per cent; smaller, points from the base, paired")
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
            element(figures.accuracy(halves, score, pooled=True, keys=False), "top1", "Top-1 against n, random halves"),
            element(figures.differences(halves, score, keys=False), "paired", "Paired differences, random halves"),
            element(figures.decomposition(halves, score, keys=False), "parts", "Co-adaptation and specificity, by n"),
        ],
        [*treatment_keys(["base", *summary.treatments]), *part_keys(decompose(halves, summary).first)],
        [top1, from_base, equal],
    )


def _transfer_section(comparison: Comparison) -> ComparisonSection:
    score, studies = comparison.score, dict(zip(comparison.names, comparison.studies, strict=True))
    figure = figures.comparison(studies, score, keys=False)
    drawn = [element(figure, "transfer-random", "Difference from the base of frozen transfer and random networks")]
    if sum(any("transfer" in row.difference for row in summary.rows) for summary in comparison.summaries) > 1:
        alone = figures.comparison(studies, score, treatments=("transfer",), keys=False)
        drawn.append(element(alone, "transfer-alone", "Difference from the base of frozen transfer networks"))
    lines = [LegendKey("frozen transfer", "var(--ink)"), LegendKey("frozen random layers", "var(--ink)", "dotted")]
    tables = [_table(comparison, FROM_BASE[name], STYLES[name].label.capitalize()) for name in ("transfer", "random")]
    return ComparisonSection(
        "transfer",
        "Transfer and random layers (the paper's figure 3)",
        "Points of top-1 above or below the base of the same task and seed, so that studies on different classes and "
        "images can be laid over each other. The further apart two tasks are, the earlier their frozen layers cost.",
        drawn,
        [*study_keys(studies), *lines],
        [table for table in tables if table.rows],
    )


def _equal_section(comparison: Comparison) -> list[ComparisonSection]:
    """What is compared at equal training, as tables; none where no two studies or none at all have it."""
    captions = {part: f"{part.name.capitalize()}: {part.networks.replace(' - ', f' {MINUS} ')}" for part in PARTS}
    tables = [table for part in PARTS if (table := _table(comparison, part, captions[part])).rows]
    if not tables:
        return []
    lead = (
        "Points of top-1 between networks that have had the same training: what freezing the task's own layers costs, "
        "what it costs that they are the other task's, and what fine-tuning leaves of having seen the other task."
    )
    return [ComparisonSection("equal", "At equal training", lead, tables=tables)]


def _verdicts(studies: Mapping[str, StudyResults], score: Score) -> list[Verdict]:
    found = ((name, verdict(study, score)) for name, study in studies.items())
    return [replace(told, text=f"{name}: {told.text}") for name, told in found if told is not None]


def _table(comparison: Comparison, effect: Effect, caption: str) -> HtmlTable:
    """Return `effect` in each study and how far each is from the first one; columns without a number are left out."""
    lines = [line for line in comparison.lines if line.effect == effect]
    heads = (*comparison.names, *(f"{name} − {comparison.names[0]}" for name in comparison.names))
    fields = [(*line.estimates, *line.apart) for line in lines]
    kept = [i for i in range(len(heads)) if any(row[i] is not None for row in fields)]
    rows = tuple((str(line.n), tuple(_amount(row[i]) for i in kept)) for line, row in zip(lines, fields, strict=True))
    return HtmlTable(caption, ("n", *(heads[i] for i in kept)), rows)


def _amount(found: Estimate | None) -> TableCell:
    return TableCell("–") if found is None else TableCell(signed(found))


def _volume_section(studies: Sequence[StudyResults], score: Score) -> ComparisonSection:
    points = figures.volumes(studies, score)
    rows = tuple(
        (f"{images:,}", tuple(_volume_cell(points[task].get(images, [])) for task in points))
        for images in sorted({k for runs in points.values() for k in runs})
    )
    several = [f"task {task}" for task in points] if len(points) > 1 else ["top-1"]
    return ComparisonSection(
        "volume",
        "Fewer images",
        "Top-1 of base networks trained on the first so many images of each class. A cross is a network that ended "
        "no better than chance: its training failed, which says nothing about what that many images are worth.",
        [element(figures.volume(studies, score, keys=False), "volume", "Top-1 against training images per class")],
        study_keys(several) if len(points) > 1 else [],
        [HtmlTable("Top-1 of the bases, in per cent", ("images per class", *several), rows)],
    )


def _volume_cell(found: Sequence[tuple[float, bool]]) -> TableCell:
    if not found:
        return TableCell("–")
    mean = sum(value for value, _ in found) / len(found)
    return TableCell(per_cent(mean), runs="no better than chance" if all(failed for _, failed in found) else "")
