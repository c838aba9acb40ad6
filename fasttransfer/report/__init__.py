"""The report of a study: the page with its figures, the spreadsheets, and the table for the terminal."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fasttransfer.pipelines.views import describe_views
from fasttransfer.report.analysis.comparison import Comparison
from fasttransfer.report.attempts import raise_errors_last
from fasttransfer.report.table import table
from fasttransfer.study import paths
from fasttransfer.study.records import Score, StudyResults

__all__ = ["table", "write_comparison", "write_paper", "write_report"]

# The functions import what draws: matplotlib takes a second to import and the table does without it. They return the
# path of index.html. They raise an InputError if the folder cannot be written, and after everything else is written an
# ExceptionGroup of what prevented figures.


@raise_errors_last()
def write_report(
    recorded: StudyResults, folder: Path, *, score: Score = "last", overlay: StudyResults | None = None
) -> Path:
    """Write `folder`/report/: index.html, results.csv, means.csv, and the figures as SVG, PDF and PNG.

    The study may be unfinished. The same records give the same bytes of HTML, SVG, PDF and CSV.

    Args:
        recorded: the study.
        folder: of the study.
        score: of which means and figures are made.
        overlay: a part of the paper, `fasttransfer.study.paper.load_results`, whose curves are laid behind the study's
            if its network has the paper's stages.
    """
    from fasttransfer.report import figures, filters, page, spreadsheet
    from fasttransfer.report.analysis.effects import PRETRAINED, PRETRAINED_PLUS
    from fasttransfer.report.files import write_files

    drawn = {
        "accuracy": partial(figures.accuracy, recorded, score),
        "differences": partial(figures.differences, recorded, score, overlay=overlay),
        "decomposition": partial(figures.decomposition, recorded, score),
        "learning": partial(figures.learning, recorded),
    }
    if any(result.treatment in (PRETRAINED, PRETRAINED_PLUS) for result in recorded.results):
        drawn["worth"] = partial(figures.worth, recorded, score)
    if filters.first_filters(recorded):
        drawn["filters"] = partial(figures.filters, recorded)
    texts = {
        "results.csv": spreadsheet.results_csv(recorded),
        "means.csv": spreadsheet.means_csv({folder.resolve().name: recorded}, score),
        "index.html": page.page(recorded, score, overlay),
    }
    return write_files(paths.report_folder(folder), drawn, texts, f"views: {describe_views(recorded.study)}")


@raise_errors_last()
def write_paper(folder: Path, *, score: Score = "best10") -> Path:
    """Write the paper's figures, drawn from its published results alone, a page with them and means.csv."""
    from fasttransfer.report import side_by_side, spreadsheet
    from fasttransfer.report.files import write_files
    from fasttransfer.study import paper

    halves: tuple[paper.Which, ...] = ("random", "natural-manmade")
    texts = {
        "means.csv": spreadsheet.means_csv({which: paper.load_results(which) for which in halves}, score),
        "index.html": side_by_side.paper_page(score),
    }
    return write_files(folder, side_by_side.paper_figures(score), texts)


@raise_errors_last()
def write_comparison(comparison: Comparison, folder: Path, *, command: str) -> Path:
    """Write a page with studies side by side, and its figure; `command` makes it again."""
    from fasttransfer.report import figures, side_by_side
    from fasttransfer.report.files import write_files

    views = {name: describe_views(study.study) for name, study in comparison.by_name.items()}
    each = "; ".join(f"{name} {shown}" for name, shown in views.items())
    caption = f"views: {each if len(set(views.values())) > 1 else next(iter(views.values()))}"
    drawn = {"comparison": partial(figures.comparison, comparison.by_name, comparison.score)}
    texts = {"index.html": side_by_side.comparison_page(comparison, command=command)}
    return write_files(folder, drawn, texts, caption)
