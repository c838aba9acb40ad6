"""Names of studies and classes that mean something to matplotlib, HTML or a terminal are shown as they are."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from html_reader import check_stands_alone
from matplotlib.text import Text

from fasttransfer.report import figures, write_comparison, write_report
from fasttransfer.report.analysis.comparison import compare
from fasttransfer.report.svg import pdf, png, svg
from fasttransfer.study.records import Records, StudyResults

STRANGE = os.fsdecode(b"caf\xe9")
NAMES = {
    STRANGE: r"caf\xe9",
    "$x": "$x",
    "$a_b$": "$a_b$",
    "_hidden": "_hidden",
    "<b> & [b]": "<b> & [b]",
    "\x1b": r"\x1b",
}


def named(study: Callable[..., StudyResults], name: str) -> StudyResults:
    return replace(study(("B",), (0,), layers=[2], treatments=["transfer"]), folder=Path("runs") / name)


def test_the_legend_of_studies_has_their_names_letter_by_letter(study: Callable[..., StudyResults]) -> None:
    figure = figures.comparison({name: named(study, name) for name in NAMES}, treatments=("transfer",))
    shown = ["".join(text.itertext()) for text in ET.fromstring(svg(figure)).iter("{http://www.w3.org/2000/svg}text")]
    assert set(NAMES.values()) <= set(shown)
    assert pdf(figure) and png(figure)
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if isinstance(text, Text))


def test_pages_of_studies_are_written_and_show_their_names(study: Callable[..., StudyResults], tmp_path: Path) -> None:
    comparison = compare([named(study, name) for name in NAMES])
    page = write_comparison(comparison, tmp_path, command=f"fasttransfer compare {STRANGE}")
    text = check_stands_alone(page.read_text(encoding="utf-8")).text
    assert all(name in text for name in NAMES.values())


def test_a_study_in_a_folder_that_is_not_utf_8_has_a_report(study: Callable[..., StudyResults], tmp_path: Path) -> None:
    made = study(("B",), (0,), layers=[2], treatments=["transfer"])
    facts = {**made.facts, "classes": {**made.facts["classes"], "A": [STRANGE, "[b]"]}, "command": f"grid {STRANGE}"}
    made = replace(made, folder=tmp_path / STRANGE, facts=facts, study={**made.study, "data": f"/{STRANGE}"})
    page = write_report(made, made.folder)
    text = check_stands_alone(page.read_text(encoding="utf-8")).text
    assert r"caf\xe9" in text and "[b]" in text


def test_records_take_names_that_are_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with Records(path) as book:
        book.describe({"classes": [STRANGE]}, {"cache": f"/{STRANGE}"})
        book.log_event(f"{STRANGE}: damaged")
        assert book._db.execute("SELECT text FROM events").fetchone() == (r"caf\xe9: damaged",)
        assert book._db.execute("SELECT value FROM environment").fetchone() == (r"/caf\xe9",)
        assert json.loads(book._db.execute("SELECT json FROM facts").fetchone()[0]) == [STRANGE]
