"""The report of a study: the page with its figures, the spreadsheets, and the table for the terminal."""

from __future__ import annotations

from pathlib import Path

from fasttransfer.core.files import make_folder
from fasttransfer.pipelines.views import describe_views
from fasttransfer.report.analysis.comparison import Comparison
from fasttransfer.report.table import table
from fasttransfer.study import paths
from fasttransfer.study.records import Score, StudyResults

__all__ = ["table", "write_comparison", "write_paper", "write_report"]

# The functions import what draws: matplotlib takes a second to import and the table does without it.


def write_report(
    recorded: StudyResults, folder: Path, *, score: Score = "last", overlay: StudyResults | None = None
) -> Path:
    """Write `folder`/report/: index.html, results.csv, means.csv, and the figures as SVG, PDF and PNG.

    The study may be unfinished. The same records give the same bytes of HTML, SVG, PDF and CSV.

    Args:
        recorded: the study.
        folder: of the study.
        score: of which means and figures are made.
        overlay: a part of the paper, `fasttransfer.study.paper.load_results`, whose curves are laid behind the study's.

    Returns:
        the path of index.html.

    Raises:
        InputError: the folder cannot be written.
    """
    from fasttransfer.report import figures, files, filters, page, spreadsheet

    report = make_folder(paths.report_folder(folder))
    drawn = {
        "accuracy": figures.accuracy(recorded, score),
        "differences": figures.differences(recorded, score, overlay=overlay),
        "decomposition": figures.decomposition(recorded, score),
        "learning": figures.learning(recorded),
    }
    if filters.first_filters(recorded):
        drawn["filters"] = figures.filters(recorded)
    for name, figure in drawn.items():
        files.write_figure(report, name, figure, f"views: {describe_views(recorded.study)}")
    files.write(report / "results.csv", spreadsheet.results_csv(recorded))
    files.write(report / "means.csv", spreadsheet.means_csv({folder.resolve().name: recorded}, score))
    return files.write(report / "index.html", page.page(recorded, score, overlay).encode())


def write_paper(folder: Path, *, score: Score = "best10") -> Path:
    """Write the paper's figures, drawn from its published results alone, a page with them and means.csv into `folder`.

    Returns:
        the path of index.html.

    Raises:
        InputError: the folder cannot be written.
    """
    from fasttransfer.report import files, side_by_side, spreadsheet
    from fasttransfer.study import paper

    make_folder(folder)
    for name, figure in side_by_side.paper_figures(score).items():
        files.write_figure(folder, name, figure)
    halves: tuple[paper.Which, ...] = ("random", "natural-manmade")
    means = spreadsheet.means_csv({which: paper.load_results(which) for which in halves}, score)
    files.write(folder / "means.csv", means)
    return files.write(folder / "index.html", side_by_side.paper_page(score).encode())


def write_comparison(comparison: Comparison, folder: Path, *, command: str) -> Path:
    """Write a page with studies side by side, and its figure, into `folder`; `command` makes it again.

    Returns:
        the path of index.html.

    Raises:
        InputError: the folder cannot be written.
    """
    from fasttransfer.report import figures, files, side_by_side

    make_folder(folder)
    views = {name: describe_views(study.study) for name, study in comparison.by_name.items()}
    each = "; ".join(f"{name} {shown}" for name, shown in views.items())
    caption = f"views: {each if len(set(views.values())) > 1 else next(iter(views.values()))}"
    files.write_figure(folder, "comparison", figures.comparison(comparison.by_name, comparison.score), caption)
    return files.write(folder / "index.html", side_by_side.comparison_page(comparison, command=command).encode())
