"""The published results: all there, typed, flagged, and pairing like a study's."""

from __future__ import annotations

from collections import Counter

import pytest

from fasttransfer.core.errors import InputError
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.report.analysis.summary import summarise
from fasttransfer.study.chance import mean_chance
from fasttransfer.study.paper import load_networks, load_results
from fasttransfer.study.records import StudyResults


def test_every_published_network_is_there() -> None:
    nets = load_networks()
    assert len(nets) == len({net.net for net in nets}) == 148
    studies = Counter(net.study for net in nets)
    assert (studies["full"], studies["reduced"], studies["natural-manmade"]) == (8, 12, 16)
    assert sum(studies[f"random-{i}"] for i in range(4)) == 112
    assert all(0 < net.top1 < 1 and net.top1 - 0.001 < net.best10 < 1 and net.loss > 1 for net in nets)
    by_name = {net.net: net for net in nets}
    base = by_name["half0A"]
    assert (base.treatment, base.source, base.target, base.n, base.iterations) == ("base", None, "A", 0, 450_000)
    assert (base.top1, base.best10, base.loss) == (0.61456, 0.61510, 1.74482)
    assert by_name["nolearn_1_3"].source == "R"
    assert by_name["reduced-0250"].per_class == 250


def test_networks_at_chance_are_flagged_and_no_others() -> None:
    at_chance = {net.net for net in load_networks() if net.is_at_chance}
    assert at_chance == {"nolearn_1_3", *(f"reduced-{k:04d}" for k in (5, 10, 25, 50, 100))}
    flagged = {net.net: net.flag for net in load_networks() if net.flag}
    assert set(flagged) - at_chance == {
        "reduced-0001", "reduced-0002", "nolearn_1_4", "nolearn_1_5", "nolearn_1_6", "nolearn_1_7",
    }  # fmt: skip
    assert flagged["reduced-0005"] == "no better than chance: loss 6.908, an even guess has 6.908"
    assert flagged["reduced-0001"] == "hardly better than chance: top-1 0.4 %, guessing has 0.1 %"


def test_the_random_splits_are_the_seeds_of_one_study() -> None:
    study = load_results("random")
    assert study.folder.name == "paper:random"
    summary = summarise(study.results, score="best10")
    assert (summary.targets, summary.seeds) == (("A", "B"), (0, 1, 2, 3))
    assert {result.name for result in study.results if result.seed == 3} >= {"baseA", "baseB", "A3B", "B3A", "A7A"}
    assert mean_chance(study.facts, ["A"]) == mean_chance(study.facts, ["B"]) == 1 / 500
    assert study.facts["val_pictures"] == {"A": 25_000, "B": 25_000}
    assert "arXiv:1411.1792" in study.facts["source"]


def test_both_scores_are_the_published_ones() -> None:
    by_name = {(r.name, r.seed): r for r in load_results("random").results}
    base, transfer = by_name["baseB", 2], by_name["A7B", 2]
    assert (base.score("best10"), transfer.score("best10")) == (0.62193, 0.54147)
    assert (base.score("last"), transfer.score("last")) == (0.62152, 0.54072)


def test_only_the_published_check_is_claimed() -> None:
    for which in ("random", "natural-manmade", "full", "reduced"):
        study: StudyResults = load_results(which)  # type: ignore[arg-type]
        for result in study.results:
            (check,) = result.evaluations
            assert (check.step, check.train_loss) == (result.steps, None)
            assert result.state == "done"


def test_the_reduced_networks_are_a_target_each_and_do_not_pair() -> None:
    study = load_results("reduced")
    assert sorted(study.facts["per_class"].values()) == [1, 2, 5, 10, 25, 50, 100, 250, 500, 750, 1000, 1300]
    assert len({result.target for result in study.results}) == 12
    assert Noise(study.results).cells == []
    recipe = study.study["recipe"]
    assert (recipe["lr"], recipe["steps"], recipe["lr_drops"]) == (0.0125, 200_000, [0.32, 0.64, 0.96])


def test_the_random_controls_have_all_classes() -> None:
    study = load_results("full")
    assert [result.name for result in study.results] == ["base", *(f"R{n}" for n in range(1, 8))]
    assert mean_chance(study.facts, ["ilsvrc12"]) == 1 / 1000
    rows = summarise(study.results, score="best10").rows
    assert rows[0].difference["random"].value == pytest.approx(0.49166 - 0.57631)


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(InputError, match="paper:figure2: choose one of paper:random, paper:natural-manmade"):
        load_results("figure2")  # type: ignore[arg-type]
