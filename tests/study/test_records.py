"""Records are read back as they were written, once, also after they were written again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fasttransfer.core.errors import InputError
from fasttransfer.study import records
from fasttransfer.study.cells import Cell, base
from fasttransfer.study.records import Evaluation, Records, Result

CELL = Cell(0, "B", "transfer+", 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text('split = "random:0"\n')
    return tmp_path


def test_records_are_read_as_they_were_written(folder: Path) -> None:
    checks = (Evaluation(10, 2.5, 2.25, 0.125), Evaluation(20, None, None, 0.0))
    with Records(folder / "study.db") as book:
        book.plan([base("B", 0), CELL])
        book.describe({"synthetic": True, "classes": {"A": ["é"]}}, {"torch": "2"})
        book.record_checks((CELL, e) for e in checks)
        book.record_checks([(CELL, checks[0])])  # a resumed run reports a check again
        book.log_event("something", CELL.label)
        running = records.read_results(folder).results[1]
        assert (running.state, running.steps) == ("running", 20)
        book.end_cell(CELL, "diverged", 20, "NaN")
        book.plan([base("B", 0), CELL])  # a second run plans again
    found = records.read_results(folder)
    assert found.study == {"split": "random:0"}
    assert found.facts == {"synthetic": True, "classes": {"A": ["é"]}}
    assert found.environment == {"torch": "2"}
    assert [event[1:] for event in found.events] == [(CELL.label, "something")]
    assert found.results == (
        Result("baseB", "base", "B", None, 0, 0, "planned", 0, ()),
        Result("A3B+", "transfer+", "B", "A", 3, 0, "diverged", 20, checks, "NaN"),
    )


def test_a_study_of_an_earlier_version_names_its_network_as_today(folder: Path) -> None:
    (folder / "study.toml").write_text('[recipe]\nbatch = 8\n[recipe.geometry]\nname = "caffenet"\n')
    with Records(folder / "study.db"):
        pass
    assert records.read_results(folder).study == {"recipe": {"batch": 8, "network": {"name": "caffenet"}}}


def test_scores() -> None:
    top1 = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.55, 0.45, 0.05]
    result = Result(
        "baseA",
        "base",
        "A",
        None,
        0,
        0,
        "done",
        12,
        tuple(Evaluation(i, 1.0, 2.0, t) for i, t in enumerate(top1)),
    )
    assert result.last_top1 == 0.05
    assert result.best10_top1 == pytest.approx((0.9 + 0.8 + 0.7 + 0.6 + 0.55 + 0.5 + 0.45 + 0.4 + 0.3 + 0.2) / 10)
    assert result.last_loss == 2.0
    empty = Result("baseA", "base", "A", None, 0, 0, "planned", 0, ())
    assert (empty.last_top1, empty.best10_top1, empty.last_loss) == (None, None, None)


def test_reopening_forgets_a_cell(folder: Path) -> None:
    with Records(folder / "study.db") as book:
        book.plan([CELL])
        book.record_checks([(CELL, Evaluation(10, 2.5, 2.25, 0.125))])
        book.end_cell(CELL, "done", 10, correct=b"\xa0")
        assert book.read_ended() == {(0, "A3B+"): "done"}
        assert records.read_results(folder).results[0].correct == b"\xa0"
        book.reopen(CELL)
        assert book.read_ended() == {}
    found = records.read_results(folder).results[0]
    assert (found.evaluations, found.correct) == ((), None)


def test_a_study_from_before_correct_images_were_recorded_is_read(folder: Path) -> None:
    with Records(folder / "study.db") as book:
        book.plan([CELL])
        book.end_cell(CELL, "done", 10)
    with sqlite3.connect(folder / "study.db") as db:
        db.executescript("DROP TABLE correct; DROP TABLE checksums")
    assert records.read_results(folder).results[0].correct is None


def test_missing_and_broken_studies_are_errors(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="no study here"):
        records.read_results(tmp_path / "nowhere")
    (folder / "study.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(InputError, match="not a readable study database"):
        records.read_results(folder)
    with pytest.raises(InputError, match="cannot be used"), Records(folder / "study.db"):
        pass
