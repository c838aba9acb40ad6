"""What a study says: the page with its figures, the spreadsheet, and the table for the terminal."""

from __future__ import annotations

from pathlib import Path

from fasttransfer.analysis import Score
from fasttransfer.files import make_folder, replace_file
from fasttransfer.records import Recorded
from fasttransfer.report.table import table

__all__ = ["table", "write_report"]


def write_report(recorded: Recorded, folder: Path, *, score: Score = "last") -> Path:
    """Writes `folder`/report/: index.html, three figures as SVG and PNG, results.csv.

    The study may be unfinished. The same records give the same bytes of HTML, SVG and CSV.

    Returns:
        the path of index.html.

    Raises:
        InputError: the folder cannot be written.
    """
    # Here, not above: matplotlib takes a second to import and the table does without it.
    from fasttransfer.report import figures, page, spreadsheet, svg

    report = make_folder(folder / "report")
    drawn = {
        "accuracy": figures.accuracy(recorded, score),
        "drops": figures.parts(recorded, score),
        "learning": figures.learning(recorded),
    }
    for name, figure in drawn.items():
        _write(report / f"{name}.svg", svg.svg(figure))
        _write(report / f"{name}.png", svg.png(figure))
    _write(report / "results.csv", spreadsheet.results_csv(recorded))
    index = report / "index.html"
    _write(index, page.page(recorded, score).encode())
    return index


def _write(path: Path, content: bytes) -> None:
    with replace_file(path) as file:
        file.write(content)
