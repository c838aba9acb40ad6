"""The cautions name what is missing, confounded or stuck."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from tiny_networks import net

from fasttransfer.report.cautions import confounds, warnings
from fasttransfer.study.cells import Cell
from fasttransfer.study.paper import load_results
from fasttransfer.study.records import Evaluation, Result, StudyResults


def test_the_confounds_of_the_published_results_are_reported() -> None:
    told = confounds(load_results("random").results, "best10", seeds_are="random splits")
    assert told == [
        "Transfer was run on A and B of random splits 0 to 3, selffer on A of random splits 0 to 3: the two are "
        "compared where both are, with 28 of 56 cuts.",
        "Transfer+ was run on B of random splits 0 and 1, selffer+ on A of random splits 0 and 1: nowhere are both, "
        "so that the two cannot be paired with each other and a gain by the other task's features cannot be told from "
        "one by longer training.",
        "Read off the unpaired means, transfer+ (64.1 %) is 1.4 points above selffer+ (62.7 %); each paired with the "
        "base of its own half, it is level with it (+0.97 and +0.97). The rest is the halves that were run, whose "
        "bases have 63.1 and 61.8 %.",
    ]
    (missing,) = confounds(load_results("natural-manmade").results)
    assert missing.startswith("No selffer was run: what is lost to co-adaptation")


def test_a_whole_grid_has_no_confounds() -> None:
    whole = [net(t, 0.6, target=target, n=n, seed=seed) for target in ("A", "B") for seed in range(2) for n in (1, 2)
             for t in ("base", "selffer", "selffer+", "transfer", "transfer+", "random")]  # fmt: skip
    assert confounds(whole) == []
    short = [r for r in whole if (r.treatment, r.n, r.target) != ("selffer", 2, "A")]
    (told,) = confounds(short)
    assert told == (
        "Transfer and selffer were not run at the same n everywhere: the two are compared where both are, with 6 of 8 "
        "cuts."
    )


def test_a_missing_base_is_reported_with_the_number_of_networks_it_affects() -> None:
    results = [net("base", 0.6), net("transfer", 0.5), net("selffer", 0.5),
               net("base", 0.6, target="A", state="diverged"), net("transfer", 0.5, target="A"),
               net("selffer", 0.5, target="A")]  # fmt: skip
    assert confounds(results) == [
        "The base of A is missing: what was trained there (2 of 4 networks) is in no difference."
    ]
    assert confounds([net("transfer", 0.5, target=target) for target in ("A", "B")])[0] == (
        "The bases of A and B are missing: what was trained there (2 of 2 networks) is in no difference."
    )


def _one(treatment: str, n: int, seed: int, top1: float, *, loss: float = 1.0, target: str = "B") -> Result:
    cell = Cell(seed, target, treatment, n)
    return Result(cell.name, treatment, target, cell.source, n, seed, "done", 10, (Evaluation(10, loss, loss, top1),))


def test_stuck_bases_transfers_and_controls_have_sentences_of_their_own() -> None:
    even = math.log(16)
    results = (
        _one("base", 0, 0, 0.7),
        _one("base", 0, 0, 1 / 16, loss=even, target="A"),
        _one("random", 5, 0, 1 / 16, loss=even),
        _one("transfer", 7, 0, 1 / 16, loss=even),
    )
    facts = {"classes": {task: ["c"] * 16 for task in ("A", "B")}}
    told = warnings(StudyResults(Path("runs/x"), {}, facts, results, {}, ()))
    named = [re.findall(r"\b(?:base[AB]|[AR]\d[AB])\b", text.split(". ")[0]) for text in told]
    assert named == [["baseA"], ["A7B"], ["R5B"], []]  # each where it belongs
    assert all("tuck at chance" in text for text in told[:3])
    assert "compared with" in told[0] and "in the means" in told[1] and "andom controls" in told[2]
    assert "selffer" in told[3]


def test_late_starters_are_reported_with_their_share_at_chance() -> None:
    even = math.log(16)
    checks = tuple(Evaluation(10 * i, None, even if i < 4 else 1.0, 1 / 16 if i < 4 else 0.6) for i in range(1, 11))
    late = Result("baseB", "base", "B", None, 0, 0, "done", 100, checks)
    (told,) = warnings(StudyResults(Path("runs/x"), {}, {"classes": {"B": ["c"] * 16}}, (late,), {}, ()))
    assert "chance" in told and "more than 25 %" in told and told.endswith(": baseB (30 %).")
    (told,) = warnings(
        StudyResults(Path("runs/x"), {}, {"classes": {"B": ["c"] * 16}}, (late, replace(late, seed=1)), {}, ())
    )
    assert told.endswith("baseB (seed 0, 30 %), baseB (seed 1, 30 %).")
