"""What a study says: the page with its figures, the spreadsheet, and the table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fasttransfer.core.files import make_folder, replace_file
from fasttransfer.pipelines.views import describe_views
from fasttransfer.report.analysis import Comparison, Score
from fasttransfer.report.table import table
from fasttransfer.study import paths
from fasttransfer.study.records import StudyResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["table", "write_comparison", "write_paper", "write_report"]

# In the functions, not above: matplotlib takes a second to import and the table does without it.


def write_report(
    recorded: StudyResults, folder: Path, *, score: Score = "last", overlay: StudyResults | None = None
) -> Path:
    """Writes `folder`/report/: index.html, results.csv, means.csv, and the figures as SVG, PDF and PNG.

    The study may be unfinished. The same records give the same bytes of HTML, SVG, PDF and CSV.

    Args:
        recorded: the study.
        folder: of the study.
        score: what means and figures are made of.
        overlay: a part of the paper, `fasttransfer.study.paper.load_results`, whose curves are laid behind the study's.

    Returns:
        the path of index.html.

    Raises:
        InputError: the folder cannot be written.
    """
    from fasttransfer.report import figures, filters, page, spreadsheet

    report = make_folder(paths.report_folder(folder))
    drawn = {
        "accuracy": figures.accuracy(recorded, score),
        "differences": figures.differences(recorded, score, overlay=overlay),
        "decomposition": figures.decomposition(recorded, score),
        "learning": figures.learning(recorded),
    }
    if filters.first_filters(recorded):
        drawn["filters"] = figures.filters(recorded)
    _write_figures(report, drawn, f"views: {describe_views(recorded.study)}")
    _write(report / "results.csv", spreadsheet.results_csv(recorded))
    _write(report / "means.csv", spreadsheet.means_csv({folder.resolve().name: recorded}, score))
    return _write(report / "index.html", page.page(recorded, score, overlay).encode())


def write_paper(folder: Path, *, score: Score = "best10") -> Path:
    """Writes the paper's figures, drawn from its published results alone, a page with them and means.csv into `folder`.

    Returns:
        the path of index.html.

    Raises:
        InputError: the folder cannot be written.
    """
    from fasttransfer.report import side_by_side, spreadsheet
    from fasttransfer.study import paper

    make_folder(folder)
    _write_figures(folder, side_by_side.paper_figures(score))
    halves: tuple[paper.Which, ...] = ("random", "natural-manmade")
    _write(folder / "means.csv", spreadsheet.means_csv({which: paper.load_results(which) for which in halves}, score))
    return _write(folder / "index.html", side_by_side.paper_page(score).encode())


def write_comparison(comparison: Comparison, folder: Path, *, command: str) -> Path:
    """Writes a page with studies side by side, and its figure, into `folder`; `command` makes it again.

    Returns:
        the path of index.html.

    Raises:
        InputError: the folder cannot be written.
    """
    from fasttransfer.report import figures, side_by_side

    make_folder(folder)
    studies = dict(zip(comparison.names, comparison.studies, strict=True))
    views = {describe_views(study.study) for study in studies.values()}
    each = "; ".join(f"{name} {describe_views(study.study)}" for name, study in studies.items())
    caption = f"views: {each if len(views) > 1 else views.pop()}"
    _write_figures(folder, {"comparison": figures.comparison(studies, comparison.score)}, caption)
    return _write(folder / "index.html", side_by_side.comparison_page(comparison, command=command).encode())


def _write_figures(folder: Path, drawn: Mapping[str, Figure], caption: str = "") -> None:
    from fasttransfer.report import drawing, svg

    for name, figure in drawn.items():
        if caption:
            with svg.settings():
                drawing.caption(figure, caption)
        for kind, encode in (("svg", svg.svg), ("pdf", svg.pdf), ("png", svg.png)):
            _write(folder / f"{name}.{kind}", encode(figure))
            figure.set_layout_engine("none")  # laid out once: that takes as long as drawing


def _write(path: Path, content: bytes) -> Path:
    with replace_file(path) as file:
        file.write(content)
    return path
