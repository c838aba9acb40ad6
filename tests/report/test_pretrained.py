"""Networks with first stages of pretrained weights: compared with the selffer of the same n, with caveats."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
import pytest
from made_up import LOSSES, RESNET, made_up
from rich.console import Console, RenderableType
from tiny_networks import net, study_of

from fasttransfer.report import figures, table
from fasttransfer.report.advice import advice_table, sentences
from fasttransfer.report.analysis.advice import advise
from fasttransfer.report.analysis.comparison import compare
from fasttransfer.report.analysis.effects import NOT_COUNTED, TREATMENTS, WORTH, WORTH_PLUS, WORTHS
from fasttransfer.report.analysis.summary import summarise
from fasttransfer.report.cautions import confounds
from fasttransfer.report.drawing import STYLES
from fasttransfer.report.findings import findings
from fasttransfer.report.page import page
from fasttransfer.report.side_by_side import comparison_page
from fasttransfer.report.spreadsheet import means_csv
from fasttransfer.report.table import comparison_table
from fasttransfer.study.records import Result

TOPS = {"base": 0.7, "selffer": 0.66, "selffer+": 0.71, "pretrained": 0.74, "pretrained+": 0.8}


def seeded(seeds: Sequence[int] = (0, 1), **changes: float) -> list[Result]:
    """One network of each kind on B at n = 3 for each seed; `changes` are their top-1 by treatment."""
    tops = {**TOPS, **{name.replace("_plus", "+"): value for name, value in changes.items()}}
    return [net(name, top1 + 0.002 * seed, seed=seed) for seed in seeds for name, top1 in tops.items()]


def printed(what: RenderableType) -> str:
    file = io.StringIO()
    Console(file=file, width=80).print(what)
    return " ".join(file.getvalue().split())


def test_they_have_names_and_looks_of_their_own() -> None:
    assert {"pretrained", "pretrained+"} < set(TREATMENTS) and set(TREATMENTS) < set(STYLES)
    assert [r.name for r in seeded((0,))[3:]] == ["P3B", "P3B+"]
    looks = {(style.line, style.marker, style.filled) for style in STYLES.values()}
    assert len(looks) == len(STYLES) == len({style.colour for style in STYLES.values()} | {"ink"})
    assert STYLES["pretrained"].filled and not STYLES["pretrained+"].filled  # as those of frozen stages are


def test_their_worth_is_over_the_selffer_of_the_same_n() -> None:
    (row,) = summarise(seeded()).rows
    assert row.effects[WORTH].value == pytest.approx(0.08) and row.effects[WORTH_PLUS].value == pytest.approx(0.09)
    assert not any(effect.is_from_base for effect in WORTHS)
    without = summarise([r for r in seeded() if r.treatment != "selffer"]).rows[0]
    assert without[WORTH] is None and without[WORTH_PLUS] is not None


def test_the_finding_and_every_output_say_what_is_not_counted() -> None:
    recorded = study_of(seeded(), facts={"stages": list(RESNET)})
    (finding,) = [one.text for one in findings(recorded) if "pretrained" in one.text]
    assert "+8.0" in finding and "at n = 3 (layer1.1)" in finding and "pretrained − selffer)" in finding
    assert "+9.0" in finding and "pretrained+ − selffer+" in finding and finding.endswith(f"{NOT_COUNTED}.")
    assert "worth: pretrained - selffer" in printed(table(recorded)) and NOT_COUNTED in printed(table(recorded))
    text = page(recorded)
    assert "What the pretrained weights are worth" in text and text.count(NOT_COUNTED) >= 3
    other = study_of(seeded(), name="y", facts={"stages": list(RESNET)})
    comparison = compare([recorded, other])
    assert {effect for line in comparison.lines if (effect := line.effect) in WORTHS} == set(WORTHS)
    assert NOT_COUNTED in printed(comparison_table(comparison))
    side_by_side = comparison_page(comparison, command="x")
    assert "What the pretrained weights are worth" in side_by_side and NOT_COUNTED in side_by_side
    assert "pretrained has had one schedule" not in side_by_side


def test_a_study_without_them_says_nothing_of_them() -> None:
    recorded = made_up(("B",), layers=[3])
    assert "pretrained" not in printed(table(recorded))
    assert not any("pretrained" in finding.text for finding in findings(recorded))
    assert "pretrained weights are worth" not in page(recorded)


def test_the_figure_of_their_worth() -> None:
    recorded = made_up(seeds=(0, 1), stages=RESNET, treatments=list(LOSSES))
    (ax,) = figures.worth(recorded).axes
    rows = summarise(recorded.results).rows
    for effect in WORTHS:
        (line,) = [x for x in ax.lines if x.get_color() == STYLES[effect.left].colour and x.get_linewidth() == 1.4]
        np.testing.assert_allclose(line.get_ydata(), [100 * row.effects[effect].value for row in rows])
    accuracy, differences = figures.accuracy(recorded, target="B").axes[0], figures.differences(recorded).axes[0]
    colours = [{line.get_color() for line in one.lines} for one in (accuracy, differences)]
    assert [STYLES["pretrained"].colour in found for found in colours] == [
        True,
        False,
    ]  # no base has had their training


def test_a_selffer_that_was_not_run_is_missed() -> None:
    said = " ".join(confounds([r for r in seeded() if r.treatment not in ("selffer", "selffer+")]))
    assert "No selffer was run: what the pretrained weights are worth cannot be told" in said
    assert "No selffer+ was run: a gain by the pretrained weights cannot be told" in said
    assert confounds(seeded()) == []


def test_means_csv_has_their_worth() -> None:
    rows = {row["what"]: row for row in csv.DictReader(means_csv({"x": study_of(seeded())}).splitlines())}
    assert float(rows["pretrained - selffer"]["mean"]) == pytest.approx(0.08)
    assert float(rows["pretrained+ - selffer+"]["mean"]) == pytest.approx(0.09)


def test_advice_chooses_among_them_and_says_what_they_are_worth() -> None:
    recorded = study_of(seeded(), facts={"stages": list(RESNET)})
    advice = advise(recorded, "B")
    assert (advice.best.treatment, advice.best.n) == ("pretrained+", 3)
    assert advice.boost is not None and advice.boost.value == pytest.approx(0.09)
    text = " ".join(sentences(recorded, advice))
    assert (
        "copy the first 3 stages (up to layer1.1) of the pretrained weights and train all (pretrained+, n = 3)" in text
    )
    assert "What the pretrained weights are worth at equal training: pretrained+ − selffer+ at n = 3 (layer1.1)" in text
    assert "The training that the pretrained weights come from is not counted." in text
    assert "pretrained+ n = 3" in printed(advice_table(recorded, advice))


def test_a_frozen_choice_is_held_against_the_frozen_selffer() -> None:
    recorded = study_of(seeded(pretrained=0.9))
    advice = advise(recorded, "B")
    assert advice.best.treatment == "pretrained" and advice.best.frozen
    assert advice.boost is not None and advice.boost.value == pytest.approx(0.24)
    results = [r for r in recorded.results if r.treatment != "selffer"]
    text = " ".join(sentences(study_of(results), advise(study_of(results), "B")))
    assert (
        "Whether that is due to the pretrained weights cannot be told" in text and "no frozen selffer was run" in text
    )
    level = study_of(seeded(pretrained=0.9, selffer=0.91))
    assert "That is no credit to the pretrained weights" in " ".join(sentences(level, advise(level, "B")))
