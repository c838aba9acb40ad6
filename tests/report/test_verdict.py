"""The sentence that every output begins with: had the bases finished learning?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fasttransfer.report.verdict import GAIN_LIMIT, verdict
from fasttransfer.study import paper
from fasttransfer.study.records import Evaluation, StudyResults


def gaining(made: StudyResults, gain: float) -> StudyResults:
    """`made` with a base+ that is better than its base by exactly `gain`, and no image recorded."""
    bases = {(r.target, r.seed): r.last_top1 or 0.0 for r in made.results if r.treatment == "base"}
    results = tuple(
        replace(r, evaluations=(Evaluation(1, 1.0, 1.0, bases[r.target, r.seed] + gain),))
        if r.treatment == "base+"
        else r
        for r in made.results
    )
    return replace(made, results=results)


def test_bases_that_had_finished(study: Callable[..., StudyResults]) -> None:
    found = verdict(study(seeds=(0, 1, 2)))
    assert found is not None and found.finished and not found.is_bad
    assert found.text.startswith("The bases had finished learning: ")
    assert "base+" in found.text and " ± " in found.text and "(A " in found.text


def test_bases_that_had_not(study: Callable[..., StudyResults]) -> None:
    found = verdict(study(seeds=(0, 1), missing=0.09))
    assert found is not None and found.is_bad
    assert found.text.startswith("The bases had not finished learning: ")
    assert "they gain 9" in found.text and "measure that missing training too" in found.text


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (
            -0.01,
            "The bases had finished learning, as far as these runs can tell: one more schedule (base+) changes them by "
            "−1.0 ± 3.4 points (A −1.0, B −1.0).",
        ),
        (
            0.02,
            "The bases may not have finished learning: trained on for one more schedule (base+) they gain +2.0 ± 3.3 "
            "points (A +2.0, B +2.0), not distinguishable from zero, but more than the 1 point of a base that has. "
            "Differences from the base may measure missing training too.",
        ),
        (
            0.09,
            "The bases had not finished learning: trained on for one more schedule (base+) they gain 9.0 ± 3.1 points "
            "(A +9.0, B +9.0). Differences from the base measure that missing training too.",
        ),
    ],
)
def test_the_whole_sentence_that_every_output_begins_with(
    study: Callable[..., StudyResults], gain: float, sentence: str
) -> None:
    found = verdict(gaining(study(), gain))
    assert found is not None and found.text == sentence


def test_one_task_has_a_verdict_of_its_own(study: Callable[..., StudyResults]) -> None:
    found = verdict(study(seeds=(0, 1), missing=0.09), target="B")
    assert found is not None and found.text.startswith("The base of B had not finished learning")
    assert "(A " not in found.text


def test_the_boundary_is_that_of_the_analysis(study: Callable[..., StudyResults]) -> None:
    made = study(seeds=(0, 1))
    for gain in (-0.02, 0.0, 0.9 * GAIN_LIMIT, GAIN_LIMIT, 1.1 * GAIN_LIMIT, 0.05):
        changed = gaining(made, gain)
        found = verdict(changed)
        assert found is not None and found.gain is not None and found.gain.value == pytest.approx(gain)
        if gain <= 0 or gain > 1.05 * GAIN_LIMIT:  # between them the noise decides
            assert found.finished == (gain <= 0)


def test_a_gain_within_its_noise_is_not_called_one(study: Callable[..., StudyResults]) -> None:
    """One seed and 640 images: 2 points are above the limit and not distinguishable from zero."""
    found = verdict(gaining(study(), 0.02))
    assert found is not None and found.is_bad
    assert "may not have finished" in found.text and "not distinguishable from zero" in found.text


def test_a_study_without_base_plus_says_that_it_was_not_measured(study: Callable[..., StudyResults]) -> None:
    before = verdict(study(base_plus=False))
    assert before is not None and before.finished is None
    assert "was not measured: the study has no base+" in before.text
    published = verdict(paper.load_results("random"), "best10")
    assert published is not None and "the paper has no base+" in published.text and "450,000 steps" in published.text


def test_an_unfinished_base_plus_is_not_known_yet(study: Callable[..., StudyResults]) -> None:
    waiting = verdict(study(done=0.03))
    assert waiting is not None and waiting.finished is None and "not known yet" in waiting.text
    assert verdict(study(done=0.0)) is None


@pytest.mark.parametrize("score", ["last", "best10"])
def test_the_score_decides(study: Callable[..., StudyResults], score: str) -> None:
    found = verdict(study(seeds=(0, 1), missing=0.09), score)  # type: ignore[arg-type]
    assert found is not None and found.is_bad
