"""Advice: the best choice, the cheapest that cannot be told from it, and the interval of their distance."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny_networks import net, study_of

from fasttransfer import cli
from fasttransfer.core.errors import InputError
from fasttransfer.networks.caffenet import CAFFENET
from fasttransfer.report.advice import advice_table, sentences
from fasttransfer.report.analysis.advice import Advice, advise
from fasttransfer.report.verdict import verdict
from fasttransfer.study.cells import Cell, base
from fasttransfer.study.paper import load_results
from fasttransfer.study.recipe import load_recipe
from fasttransfer.study.records import Evaluation, Records, Result, StudyResults
from fasttransfer.training import cost

RECIPE = {name: value for name, value in asdict(load_recipe("caffe")).items() if value is not None}


def seeded(gains: dict[tuple[str, int], float], seeds: int, noise: float = 0.002) -> list[Result]:
    """Networks on B: the base at 60 %, others above it by `gains`, each with noise and each seed at its own level."""
    random = np.random.default_rng(5)
    results = []
    for seed in range(seeds):
        level = 0.6 + 0.02 * random.normal()
        results.append(net("base", level + noise * random.normal(), seed=seed))
        for (treatment, n), gain in gains.items():
            results.append(net(treatment, level + gain + noise * random.normal(), n=n, seed=seed))
    return results


GAINS = {("transfer", 2): 0.029, ("transfer", 5): -0.03, ("transfer+", 2): 0.03, ("transfer+", 5): 0.02}


def named(advice: Advice) -> tuple[tuple[str, int], tuple[str, int]]:
    return (advice.best.treatment, advice.best.n), (advice.cheapest.treatment, advice.cheapest.n)


def test_the_best_and_the_cheapest_that_cannot_be_told_from_it() -> None:
    study = study_of(seeded(GAINS, 4), recipe=RECIPE)
    advice = advise(study, "B")
    assert named(advice) == (("transfer+", 2), ("transfer", 2))
    assert advice.noise == "pooled"
    by_key = {(c.treatment, c.n): c for c in advice.choices}
    assert list(by_key) == [("base", 0), ("transfer", 2), ("transfer", 5), ("transfer+", 2), ("transfer+", 5)]
    far = by_key["transfer", 5].behind  # much cheaper, and far behind
    assert far.half is not None and far.value > far.half
    assert far.freedom == 4 * 5 - (4 + 5 - 1)


def test_savings_are_the_multiply_adds_of_a_training_step() -> None:
    advice = advise(study_of(seeded(GAINS, 2), recipe=RECIPE), "B")
    whole = cost.cohort_macs(CAFFENET, 32, [base("B", 0)])  # as many outputs as the study has classes
    for choice in advice.choices:
        alone = cost.cohort_macs(CAFFENET, 32, [Cell(0, "B", choice.treatment, choice.n)])
        assert choice.macs == alone
        assert choice.saves == pytest.approx(1 - alone / whole)
    assert [c.saves for c in advice.choices if c.treatment != "transfer"] == [0, 0, 0]
    text = " ".join(sentences(study_of([], recipe=RECIPE), advice))
    assert "34 % fewer multiply-adds per training step" in text


def test_a_study_that_does_not_say_its_network_orders_choices_by_frozen_layers() -> None:
    advice = advise(study_of(seeded({**GAINS, ("transfer", 3): 0.0295}, 4)), "B")
    assert named(advice)[1] == ("transfer", 3)
    assert advice.cheapest.saves is None


def test_the_intervals_of_distances_cover() -> None:
    """Three seeds, five choices with a clear best: the noise is pooled over all five, the seeds' levels drop out."""
    random = np.random.default_rng(6)
    gains = {**GAINS, ("transfer+", 2): 0.1}
    hits, studies = 0, 3000
    for _ in range(studies):
        results = []
        for seed in range(3):
            level = 0.6 + 0.05 * random.normal()
            results.append(net("base", level + 0.002 * random.normal(), seed=seed))
            for (treatment, n), gain in gains.items():
                results.append(net(treatment, level + gain + 0.002 * random.normal(), n=n, seed=seed))
        advice = advise(study_of(results), "B")
        assert (advice.best.treatment, advice.best.n) == ("transfer+", 2)
        (behind,) = [c.behind for c in advice.choices if (c.treatment, c.n) == ("transfer+", 5)]
        assert behind.half is not None
        hits += abs(behind.value - 0.08) <= behind.half
    assert 0.93 < hits / studies < 0.97


def test_one_seed_is_held_against_the_validation_images() -> None:
    study = study_of([net("base", 0.6), net("transfer", 0.59, n=6), net("transfer+", 0.602, n=1)], recipe=RECIPE)
    advice = advise(study, "B")
    assert advice.noise == "images"
    assert named(advice) == (("transfer+", 1), ("transfer", 6))
    assert advice.cheapest.behind.half == pytest.approx(
        1.96 * math.sqrt((0.59 * 0.41 + 0.602 * 0.398) / 5000), rel=1e-4
    )
    text = " ".join(sentences(study, advice))
    assert "0.2 ± 1.9 points from training from scratch, which may be chance." in text
    assert "1.2 ± 1.9 points behind, so that it may cost up to 3.1" in text
    assert "One seed, so no interval over seeds" in text and "5,000 validation images" in text


def test_without_anything_to_go_by_no_cheaper_choice_is_named() -> None:
    results = [net("base", 0.6), net("transfer", 0.61, n=1), net("transfer", 0.609, n=7)]
    study = study_of(results, facts={"val_pictures": {}})
    advice = advise(study, "B")
    assert advice.noise == "none" and advice.best == advice.cheapest
    assert "no cheaper one is named" in " ".join(sentences(study, advice))


def test_training_from_scratch_may_be_best() -> None:
    study = study_of([net("base", 0.6), net("transfer", 0.4, n=3)])
    advice = advise(study, "B")
    assert advice.best.treatment == "base"
    assert sentences(study, advice)[0] == (
        "Best on B: training from scratch, 60.0 %; nothing that was copied did better."
    )


def test_a_gain_that_the_selffer_shares_is_not_credited_to_the_other_task() -> None:
    results = [net("base", 0.6), net("transfer+", 0.62), net("selffer+", 0.63)]
    assert "no credit to the other task" in " ".join(sentences(study_of(results), advise(study_of(results), "B")))
    # Errors taken as independent, 5,000 images tell 1.9 points apart.
    results[1:] = [net("transfer+", 0.66), net("selffer+", 0.61)]
    assert "no credit" not in " ".join(sentences(study_of(results), advise(study_of(results), "B")))


def test_the_boost_is_that_of_the_best_choice() -> None:
    gains = {**GAINS, ("selffer+", 2): 0.025, ("selffer+", 5): 0.07}
    results = seeded(gains, 3)
    advice = advise(study_of(results), "B")
    assert advice.best.treatment == "transfer+" and advice.best.n == 2
    by_seed = {(r.treatment, r.n, r.seed): r.evaluations[0].val_top1 for r in results}
    expected = np.mean([by_seed["transfer+", 2, s] - by_seed["selffer+", 2, s] for s in range(3)])
    assert advice.boost is not None and advice.boost.value == pytest.approx(expected) and advice.boost.kind == "pooled"
    frozen = advise(study_of(seeded({**gains, ("transfer", 2): 0.1}, 3)), "B")
    assert frozen.best.treatment == "transfer" and frozen.boost is None
    assert advise(study_of(seeded(GAINS, 3)), "B").boost is None  # no selffer+ was run


def test_training_from_scratch_twice_as_long_is_a_choice_with_its_price() -> None:
    extra = [net("base+", 0.7, n=8, seed=seed) for seed in range(3)]
    advice = advise(study_of([*seeded(GAINS, 3), *extra], recipe=RECIPE), "B")
    scratch, longer = advice.choices[:2]
    assert (longer.treatment, longer.n, longer.frozen) == ("base+", 0, False)
    assert scratch.macs is not None and longer.macs == 2 * scratch.macs and longer.saves == -1.0
    assert advice.best == longer
    judged = verdict(study_of([*seeded(GAINS, 3), *extra]), target="B")
    assert judged is not None and longer.difference == judged.gain and judged.is_bad
    unnamed = advise(study_of([*seeded(GAINS, 3), *[replace(r, seed=r.seed) for r in extra]]), "B")
    assert unnamed.cheapest.treatment != "base+" or unnamed.cheapest == unnamed.best


def test_the_longer_training_is_never_the_cheaper_of_two_that_cannot_be_told_apart() -> None:
    results = [net("base", 0.6), net("base+", 0.601, n=8), net("transfer", 0.3, n=3)]
    for more in ({}, {"recipe": RECIPE}):
        advice = advise(study_of(results, **more), "B")
        assert advice.best.treatment == "base+" and advice.cheapest.treatment == "base"


def test_a_base_plus_alone_is_nothing_to_advise_on() -> None:
    with pytest.raises(InputError, match="nothing to advise on B"):
        advise(study_of([net("base", 0.6), net("base+", 0.6, n=8)]), "B")


def test_one_seed_with_a_record_of_the_images_is_paired_image_by_image() -> None:
    right = np.arange(5000) < 3000
    other = right.copy()
    other[:20] = False
    results = [
        replace(net(treatment, float(bits.mean()), n=3), correct=np.packbits(bits).tobytes())
        for treatment, bits in (("base", right), ("transfer", other))
    ]
    behind = advise(study_of(results), "B").choices[1].behind
    assert behind.kind == "images" and behind.value == pytest.approx(0.004)
    # 20 of 5,000 images differ, all the same way.
    assert behind.half == pytest.approx(1.959964 * math.sqrt((0.004 - 0.004**2) / 5000))


def test_networks_that_learned_nothing_are_named_first() -> None:
    lost = replace(net("base", 1 / 16), evaluations=(Evaluation(100, None, math.log(16), 1 / 16),))
    study = study_of([lost, net("transfer", 0.5)])
    assert sentences(study, advise(study, "B"))[0].startswith(
        "Stuck at chance for a good part of their training or all"
    )


def test_the_published_results() -> None:
    study = load_results("random")
    advice = advise(study, "B", "best10")
    assert named(advice) == (("transfer+", 3), ("transfer+", 3))
    assert any("Not every choice was run with every random split" in text for text in sentences(study, advice))
    frozen = next(c for c in advice.choices if (c.treatment, c.n) == ("transfer", 7))
    assert frozen.faster == pytest.approx(393 / 145)
    assert frozen.saves == pytest.approx(0.65, abs=0.01)


@pytest.mark.parametrize(
    ("study", "target", "message"),
    [
        (study_of([net("base", 0.6), net("transfer", 0.5)]), "A", "--target A: the study has B"),
        (study_of([net("base", 0.6), net("transfer", 0.5, state="planned")]), "B", "nothing to advise on B yet"),
        (
            study_of([net("base", 0.6, state="diverged"), net("transfer", 0.5)]),
            "B",
            "advise on B: it takes",
        ),
        (study_of([]), "B", "the study has no targets"),
    ],
)
def test_advice_without_a_base_or_a_transfer_network_is_an_error(
    study: StudyResults, target: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        advise(study, target)


def test_the_table_fits_80_columns_and_any_terminal() -> None:
    study = load_results("random")
    file = io.StringIO()
    Console(file=file, width=80).print(advice_table(study, advise(study, "B", "best10")))
    text = file.getvalue()
    assert text.replace("─", "").isascii()
    lines = text.splitlines()
    assert [line.split()[-1] for line in lines if "n = 3 " in line][:2] == ["%", "best"]


def test_one_task_is_not_kept_waiting_by_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.toml").write_text("")
    cells = [base("A", 0), base("B", 0), Cell(0, "A", "transfer", 1), Cell(0, "B", "transfer", 1)]
    with Records(tmp_path / "study.db") as records:
        records.plan(cells)
        for cell in (cells[0], cells[1], cells[3]):
            records.record_checks([(cell, Evaluation(10, 1.0, 1.0, 0.5))])
            records.end_cell(cell, "done", 10)
    assert cli.run(["advise", str(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Best on B: training from scratch" in told and "nothing to advise on A yet" in told
    assert cli.run(["advise", str(tmp_path), "--target", "A"]) == 2


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["advise", "paper:random", "--target", "A", "--score", "best10"]) == 0
    assert "Best on A: copy the first layer and freeze it" in capsys.readouterr().out
    assert cli.run(["advise", "paper:full"]) == 2
    assert "nothing to advise on ilsvrc12" in capsys.readouterr().err
    assert cli.run(["advise", "nowhere"]) == 2
    assert "no study here" in capsys.readouterr().err
