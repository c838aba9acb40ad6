"""Sentences on what a study cannot tell: what is missing, and which comparison would mislead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from fasttransfer.report.analysis.pairs import Score, pair_scores
from fasttransfer.study.records import Result

Half = tuple[str, int]  # target, seed
Scores = dict[tuple[str, int, int], tuple[float, float]]  # (target, seed, n) -> top-1 and that of the base

# Two treatments that are compared, and what is unknown without the second.
COMPARED = (
    ("transfer", "selffer", "what is lost to co-adaptation cannot be told from what is lost to specificity"),
    ("transfer+", "selffer+", "a gain by the other task's features cannot be told from one by longer training"),
)
_MISLEADS = 0.005  # a comparison that pairing moves by half a point is worth a warning


def confounds(results: Iterable[Result], score: Score = "last", *, seeds_are: str = "seeds") -> list[str]:
    """Return sentences about what is missing or confounded; none where every treatment ran on every target and seed.

    * bases that are missing, without which nothing on their half is a difference;
    * of the two treatments that are read beside each other: one that was not run at all, or on other halves or cuts;
    * there, the unpaired comparison where it would mislead, with both numbers.

    Args:
        seeds_are: the study's word for its seeds ("random splits" of the paper's).
    """
    results = tuple(results)
    planned = {result.treatment for result in results}
    sentences = _missing_bases(results, seeds_are)
    for treatment, control, unknown in COMPARED:
        one, other = _scores(results, treatment, score), _scores(results, control, score)
        if one and control not in planned:
            sentences.append(f"No {control} was run: {unknown}.")
        elif one and other and one.keys() != other.keys():
            sentences.append(_unequal(treatment, control, one, other, unknown, seeds_are))
            sentences += _misleading(treatment, control, one, other)
    return sentences


def _scores(results: Sequence[Result], treatment: str, score: Score) -> Scores:
    """Return the finished networks of one treatment, with their bases."""
    return {
        (pair.target, pair.seed, pair.n): (pair.top1[treatment], pair.base)
        for pair in pair_scores(results, score)
        if pair.base is not None and treatment in pair.top1
    }


def _missing_bases(results: Sequence[Result], seeds_are: str) -> list[str]:
    bases = {(r.target, r.seed) for r in results if r.treatment == "base" and r.trained}
    halves = [(r.target, r.seed) for r in results if r.treatment != "base" and r.trained]
    orphans = [half for half in halves if half not in bases]
    if not orphans:
        return []
    where = _where(set(orphans), len({r.seed for r in results}) > 1, seeds_are)
    missing = "base of {} is" if len(set(orphans)) == 1 else "bases of {} are"
    return [
        f"The {missing.format(where)} missing: what was trained there ({len(orphans)} of {len(halves)} networks) is in "
        "no difference."
    ]


def _unequal(treatment: str, control: str, one: Scores, other: Scores, unknown: str, seeds_are: str) -> str:
    halves, controls = ({(target, seed) for target, seed, _ in found} for found in (one, other))
    several = len({seed for _, seed in halves | controls}) > 1
    shared = one.keys() & other.keys()
    if halves != controls:
        ran = (
            f"{treatment} was run on {_where(halves, several, seeds_are)}, "
            f"{control} on {_where(controls, several, seeds_are)}"
        )
    else:
        ran = f"{treatment} and {control} were not run at the same n everywhere"
    ran = ran[0].upper() + ran[1:]
    if not shared:
        return f"{ran}: nowhere are both, so that the two cannot be paired with each other and {unknown}."
    return f"{ran}: the two are compared where both are, with {len(shared)} of {len(one.keys() | other.keys())} cuts."


def _misleading(treatment: str, control: str, one: Scores, other: Scores) -> list[str]:
    plain, plain_control = (fmean(top1 for top1, _ in found.values()) for found in (one, other))
    paired, paired_control = (fmean(top1 - base for top1, base in found.values()) for found in (one, other))
    bases, bases_control = (fmean(base for _, base in found.values()) for found in (one, other))
    if abs((plain - plain_control) - (paired - paired_control)) < _MISLEADS:
        return []
    return [
        f"Read off the unpaired means, {treatment} ({100 * plain:.1f} %) is {_beside(plain - plain_control)} {control} "
        f"({100 * plain_control:.1f} %); each paired with the base of its own half, it is "
        f"{_beside(paired - paired_control)} it ({_signed(paired)} and {_signed(paired_control)}). The rest is the "
        f"halves that were run, whose bases have {100 * bases:.1f} and {100 * bases_control:.1f} %."
    ]


def _where(halves: set[Half], several: bool, seeds_are: str) -> str:
    """Return the halves in words: "A and B", with their seeds where the study has several: "A of seeds 0 to 3"."""
    targets = sorted({target for target, _ in halves})
    seeds = {target: sorted(seed for t, seed in halves if t == target) for target in targets}
    if not several:
        return " and ".join(targets)
    if len({tuple(found) for found in seeds.values()}) == 1:
        return f"{' and '.join(targets)} of {_range(seeds[targets[0]], seeds_are)}"
    return " and ".join(f"{target} of {_range(found, seeds_are)}" for target, found in seeds.items())


def _range(seeds: Sequence[int], seeds_are: str) -> str:
    if len(seeds) == 1:
        return f"{seeds_are.removesuffix('s')} {seeds[0]}"
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds_are} {seeds[0]} to {seeds[-1]}"
    return f"{seeds_are} {', '.join(map(str, seeds[:-1]))} and {seeds[-1]}"


def _beside(difference: float) -> str:
    amount = f"{100 * abs(difference):.1f}"
    if float(amount) == 0:
        return "level with"
    return f"{amount} points {'above' if difference > 0 else 'below'}"


def _signed(difference: float) -> str:
    return f"{100 * difference:+.2f}".replace("-", "\N{MINUS SIGN}")
