"""Networks that sit at the loss of an even guess: finite numbers, nothing learned."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tiny_networks import net

from fasttransfer.report.analysis.summary import summarise
from fasttransfer.report.cautions import confounds
from fasttransfer.study.cells import Cell
from fasttransfer.study.chance import budget_of, is_at_chance, is_hopeless, recovered, share_at_chance, stuck
from fasttransfer.study.paper import load_results
from fasttransfer.study.records import Evaluation, Result


def curve(points: list[tuple[int, float, float]], treatment: str = "base") -> Result:
    """A network on B with these (step, validation loss, top-1)."""
    cell = Cell(0, "B", treatment, 0 if treatment == "base" else 3)
    checks = tuple(Evaluation(step, None, loss, top1) for step, loss, top1 in points)
    return Result(cell.name, treatment, "B", cell.source, cell.n, 0, "done", points[-1][0], checks)


def test_a_network_at_the_loss_of_an_even_guess_is_stuck() -> None:
    even = math.log(16)
    never = curve([(100 * i, even, 1 / 16) for i in range(1, 5)])
    assert stuck(never, 16) and not recovered(never, 16)
    late = curve([(100, even, 0.06), (200, even + 0.001, 0.07), (300, 2.0, 0.4), (400, 1.5, 0.5)])
    assert share_at_chance(late, 16) == 0.5
    assert stuck(late, 16) and recovered(late, 16)
    slow = curve([(100, even, 0.06), (200, 2.5, 0.2), (300, 2.0, 0.4), (400, 1.5, 0.5)])
    assert share_at_chance(slow, 16) == 0.25 and not stuck(slow, 16)
    overfitted = curve([(100, 2.0, 0.4), (200, even, 0.4), (300, even + 1, 0.4)])
    assert share_at_chance(overfitted, 16) == 0
    collapsed = curve([(100, 2.0, 0.4), (200, even, 1 / 16)])
    assert stuck(collapsed, 16) and not recovered(collapsed, 16)
    assert not stuck(net("base", 0.5, state="planned"), 16)
    two_of_three = curve([(100, 1.2, 0.6)])  # wrong with confidence where wrong, but no guesser
    assert not stuck(two_of_three, 3)


def test_a_network_in_training_is_judged_by_the_length_of_its_whole_training() -> None:
    even = math.log(16)
    beginner = replace(curve([(100, even, 1 / 16)]), state="running")
    assert not stuck(beginner, 16) and not stuck(beginner, 16, 1000)
    hopeless = replace(curve([(100 * i, even, 1 / 16) for i in range(1, 4)]), state="running")
    assert stuck(hopeless, 16, 1000)
    assert share_at_chance(hopeless, 16, 1000) == pytest.approx(0.3)
    assert budget_of([hopeless, curve([(1000, 1.0, 0.7)])], "B") == 1000
    assert budget_of([hopeless], "B") is None
    assert not stuck(replace(hopeless, state="diverged"), 16, 1000)


def test_a_training_loss_better_than_guessing_is_not_at_chance() -> None:
    even = math.log(16)
    assert is_at_chance(Evaluation(100, even, even, 1 / 16), 16)
    assert is_at_chance(Evaluation(100, None, even, 1 / 16), 16)  # nobody wrote it down
    assert not is_at_chance(Evaluation(100, even - 0.1, even + 1, 1 / 16), 16)  # learned by heart
    assert not is_at_chance(Evaluation(100, even, None, 1 / 16), 16)  # diverged, which is another thing


def test_when_a_network_is_given_up() -> None:
    even = math.log(16)
    lost = [Evaluation(step, even, even, 1 / 16) for step in (25, 50, 75, 100)]
    assert [is_hopeless(lost[:i], 16, 100, 0.5) for i in range(1, 5)] == [False, True, True, False]
    assert not any(is_hopeless(lost[:i], 16, 100, 1.0) for i in range(1, 5))
    begun = [replace(lost[0], val_top1=0.3), *lost[1:]]  # it fell back to chance, and may come back
    assert not any(is_hopeless(begun[:i], 16, 100, 0.5) for i in range(1, 5))


def test_a_network_ended_early_is_stuck_and_counts() -> None:
    even = math.log(16)
    ended = replace(curve([(25, even, 1 / 16), (50, even, 1 / 16)], "random"), state="stuck")
    base = curve([(100, 1.0, 0.7)])
    assert stuck(ended, 16) and stuck(ended, 16, 1000) and not recovered(ended, 16)
    assert share_at_chance(ended, 16) == 1.0 and share_at_chance(ended, 16, 100) == 0.5
    assert budget_of([ended], "B") is None and budget_of([ended, base], "B") == 100
    (row,) = summarise([base, ended]).rows
    assert row.difference["random"].value == pytest.approx(1 / 16 - 0.7)
    assert ended.score("best10") == 1 / 16
    assert replace(ended, state="skipped", evaluations=()).score("last") is None
    # As a base it is there, and what is paired with it has a difference.
    as_base = replace(curve([(50, even, 1 / 16)]), state="stuck")
    assert not [told for told in confounds([as_base, net("selffer", 0.1)]) if "missing" in told]


def test_the_published_networks_that_are_stuck() -> None:
    found = {r.name for which in ("full", "reduced") for r in load_results(which).results if stuck(r, 1000)}  # type: ignore[arg-type]
    assert found == {"R3", "base5", "base10", "base25", "base50", "base100"}


def test_stuck_networks_stay_in_the_means() -> None:
    even = math.log(16)
    results = [curve([(100, 1.0, 0.7)]), curve([(100, even, 1 / 16)], "random")]
    (row,) = summarise(results).rows
    assert row.difference["random"].value == pytest.approx(1 / 16 - 0.7)
