"""A figure that cannot be drawn costs itself alone, and no setting of the user's for matplotlib prevents a report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from html_reader import check_stands_alone
from made_up import on_disk

from fasttransfer import cli
from fasttransfer.report import figures, write_report
from fasttransfer.study.records import StudyResults


def broken(*_: object, **__: object) -> None:
    raise ZeroDivisionError("no room for <axes>")


def test_a_figure_that_fails_leaves_table_page_and_the_other_figures(
    study: Callable[..., StudyResults],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = on_disk(study(("B",), (0,), treatments=["transfer"], layers=[2, 5]), tmp_path / "out")
    assert cli.run(["report", str(out)]) == 0
    table = capsys.readouterr().out.partition("report: ")[0]
    report = out / "report"
    monkeypatch.setattr(figures, "differences", broken)
    (report / "index.html").unlink()
    with pytest.raises(ExceptionGroup, match="figures cannot be drawn") as failed:
        cli.run(["report", str(out)])
    assert {type(error) for error in failed.value.exceptions} == {ZeroDivisionError}
    assert capsys.readouterr().out == table
    page = check_stands_alone((report / "index.html").read_text(encoding="utf-8"))
    missing = "Missing figure, Difference of top-1 from the base against n: it cannot be drawn"
    assert f"{missing} (ZeroDivisionError: no room for <axes>)" in page.text
    assert (report / "accuracy.svg").exists() and (report / "results.csv").exists()
    assert not list(report.glob("differences.*"))  # those of the report before would be out of date


def test_without_a_report_to_save_a_figure_raises_its_own_error(
    study: Callable[..., StudyResults], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "accuracy", broken)
    with pytest.raises(ExceptionGroup):
        write_report(study(("B",), (0,), layers=[2]), tmp_path)
    from fasttransfer.report.page import page

    with pytest.raises(ZeroDivisionError):
        page(study(("B",), (0,), layers=[2]))


def test_the_users_matplotlib_settings_prevent_no_report(tmp_path: Path) -> None:
    """A notebook's backend that is not installed here, settings that are no text, styles that are none."""
    for name in ("matplotlibrc", "stylelib/mine.mplstyle"):
        (tmp_path / "mpl" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "mpl" / name).write_bytes(b"\xe9\xff\n")
    settings = {"MPLBACKEND": "module://no_such_backend", "MPLCONFIGDIR": str(tmp_path / "mpl")}
    command = [sys.executable, "-m", "fasttransfer", "report", "--paper", "--out", str(tmp_path / "paper")]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "paper" / "accuracy.svg").exists()
