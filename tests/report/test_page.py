"""The page stands alone, is valid, and tells the reader what to be careful about."""

from __future__ import annotations

import csv
import io
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_reader import Reader, check_stands_alone
from rich.console import Console
from safetensors.numpy import save_file

from fasttransfer.core.errors import InputError
from fasttransfer.report import table, write_comparison, write_report
from fasttransfer.report.analysis.comparison import compare
from fasttransfer.report.page import page
from fasttransfer.report.spreadsheet import means_csv, results_csv
from fasttransfer.study import paper
from fasttransfer.study.records import Evaluation, Result, StudyResults


@pytest.mark.parametrize("kind", ["whole", "seeds", "half", "nothing", "empty"])
def test_parses_and_loads_nothing(study: Callable[..., StudyResults], kind: str) -> None:
    made = {
        "whole": lambda: study(),
        "seeds": lambda: study(seeds=(0, 1), layers=[2, 7], diverged=["R7A"]),
        "half": lambda: study(("B",), (0,), done=0.5),
        "nothing": lambda: study(done=0),
        "empty": lambda: StudyResults(Path("runs/x"), {}, {}, (), {}, ()),
    }[kind]()
    read = check_stands_alone(page(made))
    outside = {link for link in read.links if not link.startswith("#")}
    assert outside == {"https://arxiv.org/abs/1411.1792", "results.csv", "means.csv"}


def test_says_everything_a_colleague_asks(study: Callable[..., StudyResults]) -> None:
    text = Reader(page(study(seeds=(0, 1)))).text  # the whole grid
    for part in (
        "made-up", "natural-manmade", "caffenet-mini", "2 seeds", "148 of 148 networks done",
        "Synthetic images", "opying and freezing up to layer", "co-adaptation", "specificity", "freezing", "base+",
        "recipe.geometry.channels", "24, 64, 96", "torch", "2.15.0", "fasttransfer grid --out runs/made-up",
        "zebra-coat", "plant no. 3 <leaf>", "640 validation images", "Yosinski", "NIPS 2014", "started",
    ):  # fmt: skip
        assert part in text, part


def test_single_runs_are_flagged(study: Callable[..., StudyResults]) -> None:
    assert "One seed" in Reader(page(study(treatments=["transfer"], layers=[3]))).text
    several = Reader(page(study(seeds=(0, 1), treatments=["transfer"], layers=[3]))).text
    assert "95 % interval" in several
    assert "One seed" not in several


def test_diverged_and_unfinished_are_flagged(study: Callable[..., StudyResults]) -> None:
    text = Reader(page(study(("B",), (0,), done=0.5, diverged=["B2B"]))).text
    told = re.search(r"Diverged([^:]*): ([^.]*)\.", text)
    assert told is not None and "left out" in told[1] and "cross" in told[1]
    assert told[2] == "B2B (loss is not a number)"
    unfinished = re.search(r"Unfinished([^:]*): ([^.]*)\.", text)
    assert unfinished is not None and "not counted" in unfinished[1]
    named = re.findall(r"[AR]\dB\+?|B\dB\+?", unfinished[2])
    assert named and not {"B2B", "A1B"} & set(named)


def test_a_network_without_checks_is_not_called_a_cross(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), treatments=["transfer"], diverged=[f"A{n}B" for n in (1, 2, 3)])
    never = tuple(replace(r, evaluations=()) if r.state == "diverged" else r for r in made.results)
    text = Reader(page(replace(made, results=never))).text
    told = re.search(r"Diverged([^:]*): ([^.]*)\.", text)
    assert told is not None and "left out" in told[1] and "cross" not in told[1]
    assert re.findall(r"A\dB", told[2]) == ["A1B", "A2B", "A3B"] and told[2].count("loss is not a number") == 1


def test_stuck_and_skipped_networks_are_flagged(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), treatments=["transfer", "random"], layers=[2, 7])
    lost = tuple(Evaluation(50 * k, math.log(16), math.log(16), 1 / 16) for k in (1, 2))
    changes: dict[str, dict[str, Any]] = {
        "R7B": {"state": "stuck", "steps": 100, "evaluations": lost, "reason": "no better than chance"},
        "A7B": {"state": "skipped", "steps": 0, "evaluations": (), "reason": "its source baseA is stuck"},
    }
    changed = replace(made, results=tuple(replace(r, **changes.get(r.name, {})) for r in made.results))
    text = Reader(page(changed)).text
    for words, named in (
        ("Not trained, left out", "A7B (its source baseA is stuck)"),
        ("Ended before", "R7B"),
        ("Random controls stuck at chance", "R7B"),
    ):
        told = re.search(rf"{words}[^:.]*: ([^.]*)\.", text)
        assert told is not None and told[1] == named, words
    assert "Unfinished" not in text and "6 of 7 networks done" in text
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(results_csv(changed)))}
    assert (rows["R7B"]["stuck"], rows["R7B"]["share_at_chance"]) == ("1", "1.000")
    assert rows["R7B"]["difference_to_base"] and not rows["A7B"]["difference_to_base"]
    printed = Console(file=io.StringIO(), width=100)
    printed.print(table(changed))
    assert "Stuck at chance, ended early, counted: R7B." in printed.file.getvalue()  # type: ignore[attr-defined]
    assert "diverged or is stuck: A7B." in printed.file.getvalue()  # type: ignore[attr-defined]


def test_few_validation_images_are_a_wide_interval_in_plain_digits(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), treatments=["transfer"], layers=[3])
    made = replace(made, facts={**made.facts, "val_pictures": {"B": 40}})
    text = Reader(page(made)).text
    assert re.search(r"base by ± 13 \(95 %\)", text)
    assert not re.search(r"± 13\.\d|\de\+\d", text)


def test_a_mean_of_fewer_runs_says_so(study: Callable[..., StudyResults]) -> None:
    random = partial(study, seeds=(0, 1, 2), treatments=["random"], layers=[7])
    assert "3 of 6 runs" in Reader(page(random(diverged=["R7A"]))).text
    assert " of 6 runs" not in Reader(page(random())).text


def test_photographs_are_not_called_synthetic(study: Callable[..., StudyResults]) -> None:
    made = study(treatments=["transfer"], layers=[3])
    made = replace(made, facts={**made.facts, "synthetic": False, "held_out": True, "refused": 2})
    text = Reader(page(made)).text
    assert "ynthetic" not in text
    assert "cut from its training images" in text
    assert "2 images could not be decoded" in text


def test_a_page_without_finished_networks_says_so(study: Callable[..., StudyResults]) -> None:
    text = Reader(page(study(done=0))).text
    assert "Nothing to compare yet" in text
    assert "0 of 74 networks done" in text


def test_names_and_values_are_escaped(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), treatments=["transfer"], layers=[3])
    made = replace(
        made,
        folder=Path("runs/<b>me</b>"),
        study={**made.study, "data": "<script>alert(1)</script>"},
        environment={"<i>": "<script>"},
    )
    text = page(made)
    assert text.count("<script") == 1 and "alert(1)</script>" not in text
    assert "<b>me" not in text


def test_the_paper_is_laid_behind_and_said_to_be(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), treatments=["transfer"], layers=[3, 4])
    assert "Broad and pale" not in Reader(page(made)).text
    text = Reader(page(made, overlay=paper.matching_part(made))).text
    assert "Broad and pale behind the differences: the paper's networks on natural and man-made halves" in text
    split = replace(made, study={**made.study, "split": "random:0"})
    assert "the paper's networks on random halves" in Reader(page(split, overlay=paper.matching_part(split))).text


def test_the_first_layer_is_shown_where_its_weights_are(study: Callable[..., StudyResults], tmp_path: Path) -> None:
    made = replace(study(("B",), (0,), treatments=["transfer"], layers=[3]), folder=tmp_path)
    (tmp_path / "weights").mkdir()
    assert "What the first layer learned" not in page(made)
    filters = np.random.default_rng(0).normal(size=(96, 3, 11, 11)).astype(np.float32)
    save_file({"conv1.weight": filters}, tmp_path / "weights" / "baseB.s0.safetensors")
    (tmp_path / "weights" / "baseA.s0.safetensors").write_bytes(b"not a safetensors file")
    read = check_stands_alone(page(made))
    assert "Filters of conv1 of baseB" in read.images and "Filters of conv1 of baseA" not in read.images
    assert sum(loaded.startswith("data:") for loaded in read.loads) == 1
    assert "baseB: neighbouring weights correlate by" in read.text and "baseA: neighbouring" not in read.text


def test_tables_hold_the_numbers(study: Callable[..., StudyResults]) -> None:
    """Task B alone, n = 7: the fields of both tables are those of the summary."""
    from fasttransfer.report.analysis.effects import (
        BOOST,
        CO_ADAPTATION,
        FREEZING,
        FROM_BASE,
        FROZEN_COST,
        LOST,
        SPECIFICITY,
    )
    from fasttransfer.report.analysis.summary import summarise
    from fasttransfer.report.numbers import cost, per_cent, points, signed

    made = study(("B",), (0,))
    row = summarise(made.results, facts=made.facts).rows[-1]
    text = Reader(page(made)).text
    fields = [f"{per_cent(row.top1[t].value)} {points(row.difference[t].value)}" for t in row.top1]
    assert f"7 {' '.join(fields)}" in text
    for effects in ((FREEZING, SPECIFICITY, FROZEN_COST, BOOST), (LOST, CO_ADAPTATION, FROM_BASE["transfer+"])):
        fields = [(signed if effect.is_gain else cost)(row.effects[effect]) for effect in effects]
        assert f"7 {' '.join(fields)}" in text
    assert text.index("at equal training n freezing") < text.index("against the base n lost by transfer")


@pytest.mark.parametrize("missing", [0.0, 0.09])
def test_the_verdict_leads(study: Callable[..., StudyResults], missing: float) -> None:
    text = page(study(seeds=(0, 1), layers=[2, 5], missing=missing))
    banner = re.search(r'<p class="(verdict[^"]*)">(.*?)</p>', text)
    assert banner is not None
    assert ("verdict-bad" in banner[1]) == ("had not finished" in banner[2]) == bool(missing)
    assert banner.start() < text.index('<ul class="findings">')


def test_a_page_of_an_unfinished_base_says_no_transfer_gains(study: Callable[..., StudyResults]) -> None:
    text = page(study(seeds=(0, 1), missing=0.09))
    told = "".join(re.findall(r'<ul class="(?:findings|warnings)">.*?</ul>', text, re.DOTALL))
    assert told and " gain" not in told and "above its base" not in told and "base, is" not in told


def test_means_csv_has_every_part(study: Callable[..., StudyResults]) -> None:
    made = study(seeds=(0, 1), layers=[5])
    rows = list(csv.DictReader(means_csv({"x": made}).splitlines()))
    found = {row["what"]: float(row["mean"]) for row in rows}
    assert len(found) == len(rows)
    assert {"base+ - base", "transfer+ - selffer+", "base - transfer", "base - selffer", "transfer+ - base"} < set(
        found
    )
    parts = found["selffer+ - selffer"] + found["selffer - transfer"]
    assert parts == pytest.approx(found["selffer+ - transfer"], abs=2e-6)
    assert found["base - transfer"] == -found["transfer - base"]
    assert {(row["n"], row["what"]) for row in rows if row["n"] != "5"} == {("8", "base+ - base")}
    kinds = {row["what"]: row["interval"] for row in rows}
    assert kinds["selffer+ - transfer"] == "pooled" and set(kinds.values()) <= {"pooled", "seeds"}


@pytest.mark.prints
def test_writes_every_file_whole(study: Callable[..., StudyResults], tmp_path: Path) -> None:
    made = study(("B",), (0, 1), treatments=["selffer", "transfer"], layers=[3])
    index = write_report(made, tmp_path / "runs" / "x")
    assert index == tmp_path / "runs" / "x" / "report" / "index.html"
    names = {path.name for path in index.parent.iterdir()}
    drawn = ("accuracy", "differences", "decomposition", "learning")
    assert names == {
        "index.html",
        "results.csv",
        "means.csv",
        *(f"{name}.{kind}" for name in drawn for kind in ("svg", "pdf", "png")),
    }
    before = {path.name: path.read_bytes() for path in index.parent.iterdir()}
    write_report(made, tmp_path / "runs" / "x")
    assert {path.name: path.read_bytes() for path in index.parent.iterdir()} == before


@pytest.mark.parametrize("views", [None, 10])
def test_says_everywhere_which_views_were_shown(
    study: Callable[..., StudyResults], tmp_path: Path, views: int | None
) -> None:
    made = study(("B",), (0,), layers=[1])
    if views:
        made = replace(made, study={**made.study, "views": views})
    named = str(views or "unlimited")
    text = Reader(page(made)).text
    assert f"views: {named}" in text
    limited = re.search(r"[Vv]iews limited to (\d+): [^.]*approximation[^.]*\.", text)
    assert (limited and limited[1]) == (views and str(views))
    rows = csv.DictReader(results_csv(made).splitlines())
    assert {row["views"] for row in rows} == {named}
    folder = write_report(made, tmp_path).parent
    for figure in ("accuracy", "differences", "decomposition", "learning"):
        assert f"views: {named}" in (folder / f"{figure}.svg").read_text()
    other = replace(made, folder=Path("runs/other"), study={**made.study, "views": 2})
    compared = write_comparison(compare([made, other]), tmp_path / "c", command="compare")
    assert f"views: made-up {named}; other 2" in (compared.parent / "comparison.svg").read_text()
    assert f"other was trained on other views than made-up ({named} and 2)" in Reader(compared.read_text()).text


def test_a_folder_that_cannot_be_written_is_an_error(study: Callable[..., StudyResults], tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file is in the way")
    with pytest.raises(InputError, match=r"/report: a file has this name, a folder is needed: choose another"):
        write_report(study(("B",), (0,), layers=[1]), tmp_path)


def test_results_csv(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0, 1), done=0.5, diverged=["B2B"])
    rows = list(csv.DictReader(results_csv(made).splitlines()))
    assert list(rows[0]) == [
        "name", "treatment", "source", "target", "n", "seed", "state", "steps", "val_top1", "val_top1_best10",
        "val_loss", "base_top1", "difference_to_base", "base_top1_best10", "difference_to_base_best10", "classes",
        "chance", "share_at_chance", "stuck", "reason", "views", "stage",
    ]  # fmt: skip
    assert [(r["name"], int(r["seed"])) for r in rows] == [(r.name, r.seed) for r in made.results]
    by_name = {(r["name"], r["seed"]): r for r in rows}
    base, transfer = by_name["baseB", "0"], by_name["A4B", "0"]
    assert base["source"] == "" and base["n"] == "0" and base["difference_to_base"] == "0.000000"
    assert transfer["source"] == "A" and transfer["base_top1"] == base["val_top1"]
    assert float(transfer["difference_to_base"]) == pytest.approx(
        float(transfer["val_top1"]) - float(base["val_top1"]), abs=2e-6
    )
    assert transfer["classes"] == "16" and transfer["chance"] == "0.062500"
    longer = by_name["B8B+", "0"]
    assert longer["treatment"] == "base+" and longer["n"] == "8" and longer["source"] == "B"
    assert float(longer["difference_to_base"]) == pytest.approx(
        float(longer["val_top1"]) - float(base["val_top1"]), abs=2e-6
    )
    diverged = by_name["B2B", "0"]
    assert diverged["state"] == "diverged" and diverged["val_top1"] and not diverged["difference_to_base"]
    planned = by_name["R7B", "1"]
    assert planned["state"] == "planned" and planned["val_top1"] == "" and planned["steps"] == "0"


def test_a_large_study_takes_hardly_longer_than_a_small_one(study: Callable[..., StudyResults], tmp_path: Path) -> None:
    """67 times as many checks, of 222 networks: curves are thinned, and no figure is drawn twice."""
    seconds, sizes = [], []
    for name, seeds, checks in (("small", (0,), 20), ("large", (0, 1, 2), 450)):
        made = study(("A", "B"), seeds, checks=checks)
        assert len(made.results) == 74 * len(seeds)
        start = time.process_time()  # other work on the machine lengthens both
        index = write_report(made, tmp_path / name)
        seconds.append(time.process_time() - start)
        sizes.append(index.stat().st_size)
    assert seconds[1] < 5 * seconds[0]
    assert sizes[1] < 2.5 * sizes[0] and sizes[1] < 3_000_000  # three times with whole curves


def test_losses_that_are_not_numbers(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), treatments=["selffer"], layers=[2], diverged=["B2B"])

    def broken(result: Result) -> Result:
        last = replace(result.evaluations[-1], val_loss=float("nan"), train_loss=float("inf"))
        return replace(result, evaluations=(*result.evaluations[:-1], last))

    made = replace(made, results=tuple(broken(r) if r.state == "diverged" else r for r in made.results))
    text = Reader(page(made)).text
    assert "nan" not in text.lower()
