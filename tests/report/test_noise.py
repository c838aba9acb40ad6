"""Intervals of few seeds and of one, and the verdict on the bases: by hand and against simulations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tiny_networks import net, study_of

from fasttransfer.core.intervals import Estimate, estimate, t_quantile
from fasttransfer.report.analysis.effects import SPECIFICITY, Contrast, minus
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.report.analysis.summary import summarise, targets_of
from fasttransfer.report.verdict import Verdict, verdict
from fasttransfer.study.paper import load_results
from fasttransfer.study.records import Evaluation, Result

BOTH = ("A", "B")


def rounded(found: Estimate | None) -> tuple[float, int, float | None]:
    """Value, runs and interval of an estimate that has to be there."""
    assert found is not None
    return round(found.value, 5), found.runs, found.half


# Noise: one rule for every difference, by the number of seeds.

SMALL = {  # (treatment, n) -> scores of seeds 0 and 1, on B
    ("base", 0): (0.60, 0.62), ("selffer", 3): (0.58, 0.59), ("transfer", 3): (0.50, 0.55),
}  # fmt: skip


def small(target: str = "B", sign: float = 1.0) -> list[Result]:
    return [
        net(t, sign * v, n=n, seed=seed, target=target) for (t, n), vs in SMALL.items() for seed, v in enumerate(vs)
    ]


def test_two_seeds_pool_the_noise_of_all_networks() -> None:
    found = summarise(small()).rows[0][SPECIFICITY]
    assert found is not None and found.kind == "pooled"
    # Seed differences .02, .01, .05: about their mean, .08 / 3, they leave (-.02, -.05, .07) / 3; the squares of the
    # residuals are half of those: .0078 / 9 / 2, on (3 - 1) (2 - 1) degrees of freedom.
    variance = 0.0078 / 18 / 2
    assert found.freedom == pytest.approx(2)
    assert found.half == pytest.approx(4.3026527 * math.sqrt(variance * 2 / 2))


def test_two_targets_are_averaged_before_the_noise_is_pooled() -> None:
    # What B gains A loses: their mean is known exactly, each alone is not.
    results = [*small(), *[replace(r, evaluations=(Evaluation(1, 1.0, 1.0, 1 - r.evaluations[0].val_top1),))
                           for r in small("A")]]  # fmt: skip
    both = summarise(results).rows[0][SPECIFICITY]
    assert both is not None and both.kind == "pooled" and both.half == pytest.approx(0.0, abs=1e-12)
    one = summarise(results, target="A").rows[0][SPECIFICITY]
    assert one is not None and one.half is not None and one.half > 0.04


def test_a_base_that_occurs_several_times_in_a_mean_has_its_summed_weight() -> None:
    more = [net("transfer", v, n=5, seed=s, target=t) for t in BOTH for s, v in enumerate((0.40, 0.41))]
    noise = Noise([*small(), *small("A"), *more])
    runs = [(t, seed, minus(("transfer", n), ("base", 0))) for t in BOTH for seed in (0, 1) for n in (3, 5)]
    mean, one = noise.mean(runs), noise.mean(runs[::2])
    assert mean is not None and one is not None and mean.half is not None and one.half is not None
    # The base's weight is 1, those of the two transfers 1/2 each; of one transfer, both are 1.
    assert mean.half / one.half == pytest.approx(math.sqrt((1 + 1 / 4 + 1 / 4) / 2))


def test_a_mean_over_n_of_one_target_keeps_the_interval_of_its_own_seeds() -> None:
    """The transfer networks of one target share the noise of the base they copy, which the mean keeps."""
    more = [net("transfer", v, n=5, seed=s) for s, v in enumerate((0.40, 0.41))]
    runs = [("B", seed, minus(("transfer", n), ("base", 0))) for seed in (0, 1) for n in (3, 5)]
    mean, one = Noise([*small(), *more]).mean(runs), Noise([*small(), *more]).mean(runs[::2])
    assert mean is not None and mean.kind == "seeds" and mean.freedom == pytest.approx(1)
    assert one is not None and one.kind == "pooled"


def test_random_networks_have_a_pool_of_their_own_and_degrees_of_freedom_by_satterthwaite() -> None:
    random = [net("random", v, n=n, seed=s) for n, vs in ((3, (0.1, 0.2)), (4, (0.1, 0.1))) for s, v in enumerate(vs)]
    noise = Noise([*small(), *random])
    found = noise.mean(("B", seed, minus(("random", 3), ("base", 0))) for seed in (0, 1))
    assert found is not None and found.kind == "pooled"
    trained, alone = 0.0078 / 18 / 2, 0.05**2 / 1  # four residuals of .025; 2 and 1 degrees of freedom
    freedom = (trained + alone) ** 2 / (trained**2 / 2 + alone**2)
    assert found.freedom == pytest.approx(freedom)
    assert found.half == pytest.approx(t_quantile(freedom) * math.sqrt((trained + alone) / 2), rel=1e-4)
    one = [r for r in [*small(), *random] if (r.treatment, r.n) != ("random", 4)]
    own = Noise(one).mean(("B", seed, minus(("random", 3), ("base", 0))) for seed in (0, 1))
    assert own is not None and own.kind == "seeds" and own.freedom == pytest.approx(1)


def test_stuck_networks_leave_the_pool() -> None:
    lost = [net("transfer+", 1 / 16, seed=seed, state="stuck") for seed in (0, 1)]
    assert Noise([*small(), *lost]).mean(_specificity(2)) == Noise(small()).mean(_specificity(2))
    found = Noise([*small(), *lost]).mean(("B", s, minus(("transfer+", 3), ("base", 0))) for s in (0, 1))
    assert found is not None and found.kind == "seeds"  # what is said about them rests on themselves


def _specificity(seeds: int, targets: tuple[str, ...] = ("B",)) -> list[tuple[str, int, Contrast]]:
    return [(target, seed, minus(("selffer", 3), ("transfer", 3))) for target in targets for seed in range(seeds)]


@pytest.mark.parametrize(("seeds", "kind"), [(1, "none"), (2, "pooled"), (4, "pooled"), (5, "seeds"), (6, "seeds")])
def test_the_number_of_seeds_decides_what_an_interval_is_made_of(seeds: int, kind: str) -> None:
    random = np.random.default_rng(4)
    results = [
        net(t, 0.5 + 0.01 * random.normal(), seed=s) for s in range(seeds) for t in ("base", "selffer", "transfer")
    ]
    summary = summarise(results)
    part, level = summary.rows[0][SPECIFICITY], summary.rows[0].top1["transfer"]
    assert part is not None and part.kind == kind and (part.half is None) == (kind == "none")
    assert level.kind == ("none" if seeds == 1 else "seeds")  # a level has its seeds' share in it: never pooled
    assert summary.noise_kind == kind


def test_runs_that_are_not_balanced_keep_the_interval_of_their_own_seeds() -> None:
    runs = {
        ("A", 0): (0.5, 0.4),
        ("A", 1): (0.5, 0.42),
        ("B", 0): (0.7, 0.5),
        ("B", 1): (0.7, 0.53),
        ("B", 2): (0.7, 0.51),
    }
    results = [net(t, v, target=target, seed=seed) for (target, seed), vs in runs.items()
               for t, v in zip(("selffer", "transfer"), vs, strict=True)]  # fmt: skip
    found = summarise(results).rows[0][SPECIFICITY]
    own = estimate((target, seed, a - b) for (target, seed), (a, b) in runs.items())
    assert found is not None and own is not None and found.kind == "seeds"
    assert found.half == pytest.approx(own.half)


BITS = {"selffer": [1, 1, 1, 0, 1, 0, 1, 1, 0, 1], "transfer": [1, 0, 1, 0, 0, 1, 1, 1, 0, 1]}


def seen(target: str = "B") -> list[Result]:
    """Two networks of which it is known which of ten images they got right."""
    return [replace(net(t, sum(bits) / 10, target=target), correct=np.packbits(bits).tobytes())
            for t, bits in BITS.items()]  # fmt: skip


def test_one_seed_is_held_against_the_images_paired_one_by_one() -> None:
    facts = {"val_pictures": {"A": 10, "B": 10}}
    found = Noise(seen(), facts).mean(_specificity(1))
    assert found is not None and found.value == pytest.approx(0.1) and found.kind == "images"
    # Differences +1 twice, -1 once, 0 seven times: mean .1, variance .3 - .01.
    assert found.half == pytest.approx(1.959964 * math.sqrt(0.29 / 10))
    assert found.error is None and found.freedom == 0
    both = Noise([*seen(), *seen("A")], facts).mean(_specificity(1, BOTH))
    assert both is not None and both.half == pytest.approx(found.half / math.sqrt(2))


def test_one_seed_without_a_record_of_the_images_has_no_interval_unless_errors_are_taken_as_independent() -> None:
    facts = {"val_pictures": {"B": 10}}
    results = [replace(seen()[0], correct=None), seen()[1]]
    found = Noise(results, facts).mean(_specificity(1))
    assert found is not None and found.half is None and found.kind == "none"
    cautious = Noise(results, facts).mean(_specificity(1), unpaired=True)
    assert cautious is not None and cautious.kind == "images"
    assert cautious.half == pytest.approx(1.959964 * math.sqrt((0.7 * 0.3 + 0.6 * 0.4) / 10))
    paired = Noise(seen(), facts).mean(_specificity(1), unpaired=True)
    assert paired is not None and paired.half is not None and cautious.half is not None and paired.half < cautious.half
    nothing = Noise(results).mean(_specificity(1), unpaired=True)
    assert nothing is not None and nothing.kind == "none"
    short = Noise(seen(), {"val_pictures": {"B": 100}}).mean(_specificity(1))  # of other images than the study's
    assert short is not None and short.kind == "none"


@pytest.mark.parametrize("seeds", [2, 3])
def test_pooled_intervals_of_few_seeds_cover(seeds: int) -> None:
    """Networks inherit 40 % of the noise of the base that they copy; 22 networks on each of two targets."""
    random = np.random.default_rng([9, seeds])
    parts = ("freezing", "specificity", "boost")
    truth = {"selffer": -0.02, "selffer+": 0.0, "transfer": -0.05, "transfer+": 0.01}
    true = {"freezing": 0.02, "specificity": 0.03, "boost": 0.01, "gain": 0.0}
    studies, hits = 1200, dict.fromkeys((*parts, "gain"), 0)
    for _ in range(studies):
        results = []
        for seed in range(seeds):
            level, luck = 0.02 * random.normal(), dict(zip(BOTH, 0.01 * random.normal(size=2), strict=True))
            for target, other in (BOTH, BOTH[::-1]):
                mean = {"A": 0.65, "B": 0.53}[target] + level
                own = iter(0.0092 * random.normal(size=40))
                results.append(net("base", mean + luck[target], target=target, seed=seed))
                results.append(net("base+", mean + 0.4 * luck[target] + next(own), n=8, target=target, seed=seed))
                for treatment, effect in truth.items():
                    source = luck[other if treatment.startswith("transfer") else target]
                    for n in (1, 3, 4, 5, 7):
                        top1 = mean + effect + 0.4 * source + next(own)
                        results.append(net(treatment, top1, n=n, target=target, seed=seed))
        noise = Noise(results)
        pairs = {
            "freezing": minus(("selffer+", 3), ("selffer", 3)),
            "specificity": minus(("selffer", 3), ("transfer", 3)),
            "boost": minus(("transfer+", 3), ("selffer+", 3)),
            "gain": minus(("base+", 0), ("base", 0)),
        }
        for name, contrast in pairs.items():
            found = noise.mean((target, seed, contrast) for target in BOTH for seed in range(seeds))
            assert found is not None and found.half is not None and found.kind == "pooled"
            hits[name] += abs(found.value - true[name]) <= found.half
    for name in parts:
        assert 0.93 < hits[name] / studies < 0.97, name
    assert hits["gain"] / studies > 0.93  # a base has more in common with its base+ than with the rest of the pool


# base+ and the verdict.


def test_base_plus_is_neither_a_row_nor_a_target() -> None:
    results = [net("base", 0.7), net("base+", 0.72, n=8), net("transfer", 0.6), net("base", 0.6, target="A"),
               net("base+", 0.6, n=8, target="A")]  # fmt: skip
    assert Noise(results).cells == [("B", 0, 3)]
    assert targets_of(results) == ("B",)
    summary = summarise(results)
    assert [row.n for row in summary.rows] == [3] and summary.treatments == ("transfer",)
    assert rounded(summary.base_plus) == (0.72, 1, None)
    assert summary.gain is not None and summary.gain.value == pytest.approx(0.02)
    bases = [r for r in results if r.treatment != "transfer"]
    assert targets_of(bases) == ("A", "B")
    assert summarise(bases).rows == () and summarise(bases).noise_kind == "none"


def judge(results: list[Result], images: int = 0, target: str | None = None) -> Verdict:
    """Return the verdict on a study with some finished network; 0 validation images: their number is not recorded."""
    found = verdict(study_of(results, facts={"val_pictures": dict.fromkeys(BOTH, images)}), target=target)
    assert found is not None
    return found


def gained(gains: list[float], images: int = 0) -> tuple[Estimate, bool | None]:
    """Return the gain of bases that gain `gains`, one per seed, and whether they had finished learning."""
    results = []
    for seed, gain in enumerate(gains):
        results += [net("base", 0.7, seed=seed), net("base+", 0.7 + gain, n=8, seed=seed)]
    found = judge(results, images)
    assert found.gain is not None
    return found.gain, found.finished


def test_a_gain_of_one_point_within_its_interval_is_finished_and_above_it_is_not() -> None:
    spread = [0.01 - 0.02, 0.01, 0.01 + 0.02]  # mean one point, standard error above it
    gain, finished = gained(spread)
    assert gain.half is not None and gain.half > gain.value == pytest.approx(0.01)
    assert finished
    assert not gained([one + 0.0001 for one in spread])[1]


def test_a_small_gain_above_its_interval_is_not_finished() -> None:
    gain, finished = gained([0.0049, 0.005, 0.0051])
    assert gain.half is not None and gain.half < gain.value
    assert not finished
    assert gained([-0.0049, -0.005, -0.0051])[1]  # a loss is no missing training
    assert gained([0.0, 0.0, 0.0])[1]


def test_without_an_interval_only_the_limit_counts() -> None:
    assert gained([0.01])[0].half is None
    assert gained([0.01])[1] and not gained([0.0101])[1]
    # Errors taken as independent: 10,000 images tell 1.3 points apart.
    gain, finished = gained([0.009], images=10_000)
    assert gain.kind == "images" and finished
    assert not gained([0.009], images=1_000_000)[1]


def test_the_verdict_is_of_the_mean_over_tasks_or_of_one() -> None:
    results = [net(t, v, n=8, target=target) for target, gain in (("A", 0.03), ("B", -0.02))
               for t, v in (("base", 0.7), ("base+", 0.7 + gain))]  # fmt: skip
    both = judge(results)
    assert both.gain is not None and both.gain.value == pytest.approx(0.005) and both.finished
    assert "(A +3.0, B −2.0)" in both.text
    on_a = judge(results, target="A")
    assert on_a.is_bad and "base of A" in on_a.text


@pytest.mark.parametrize("state", ["planned", "running", "diverged"])
def test_there_is_no_verdict_without_a_finished_base_plus_beside_its_base(state: str) -> None:
    for results in (
        [net("base", 0.7), net("base+", 0.7, n=8, state=state)],
        [net("base", 0.7, state=state), net("base+", 0.7, n=8)],
        list(load_results("random").results),
    ):
        assert judge(results).gain is judge(results).finished is None
