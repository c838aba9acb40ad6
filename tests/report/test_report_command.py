"""`fasttransfer report --paper` and `compare --out`: the files they write, the text they print, their errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up import made_up, on_disk

from fasttransfer import cli


def test_the_paper_behind_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = on_disk(made_up(("B",), (0,), treatments=["transfer"], layers=[2, 5]), tmp_path / "out")
    index = out / "report" / "index.html"
    assert cli.run(["report", str(out), "--paper"]) == 0
    assert "Broad and pale" in index.read_text(encoding="utf-8")
    assert cli.run(["report", str(out)]) == 0
    assert "Broad and pale" not in index.read_text(encoding="utf-8")
    assert "What the first layer learned" in index.read_text(encoding="utf-8")
    assert cli.run(["compare", str(out), "paper:natural-manmade", "--out", str(tmp_path / "both")]) == 0
    assert f"compare {out} paper:natural-manmade" in (tmp_path / "both" / "index.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert cli.run(["report", str(out), "--out", str(tmp_path / "elsewhere")]) == 2
    assert "--out goes with --paper alone" in capsys.readouterr().err


def test_a_report_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report"]) == 2
    assert "name the folder of a study, or --paper" in capsys.readouterr().err
