"""The cautions of a study: what failed, is missing or confounded, and which numbers are of single runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from fasttransfer.pipelines.views import UNLIMITED, describe_views
from fasttransfer.report.analysis.effects import FROM_BASE, level
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.report.analysis.summary import Summary
from fasttransfer.report.numbers import count, label, per_cent, points, some
from fasttransfer.report.stages import Stages
from fasttransfer.study.cells import BASE, HE, RANDOM
from fasttransfer.study.chance import STUCK_SHARE, budget_of, class_count, recovered, share_at_chance, stuck
from fasttransfer.study.records import Result, Score, StudyResults

Half = tuple[str, int]  # target, seed
Scores = dict[tuple[str, int, int], tuple[float, float]]  # (target, seed, n) -> top-1, difference from the base

# Two treatments that are compared, and what is unknown without the second.
_COMPARED = (
    ("transfer", "selffer", "what is lost to co-adaptation cannot be told from what is lost to specificity"),
    ("transfer+", "selffer+", "a gain by the other task's features cannot be told from one by longer training"),
    ("pretrained", "selffer", "what the pretrained weights are worth cannot be told from what freezing costs"),
    ("pretrained+", "selffer+", "a gain by the pretrained weights cannot be told from one by longer training"),
)
_MISLEADS = 0.005  # a comparison that pairing moves by half a point is worth a warning


def cautions(recorded: StudyResults, summary: Summary) -> list[str]:
    """Return sentences, the gravest first."""
    several = len(summary.seeds) > 1
    sentences = []
    failed: dict[tuple[str, bool, str], list[str]] = {}
    for result in recorded.results:
        if result.state in ("diverged", "skipped"):
            what = "Diverged" if result.state == "diverged" else "Not trained"
            failed.setdefault((what, bool(result.evaluations), result.reason), []).append(label(result, several))
    for (what, is_drawn, reason), names in failed.items():
        why = f" ({'each: ' if len(names) > 1 else ''}{reason})" if reason else ""
        cross = ", drawn as a cross" if is_drawn else ""
        sentences.append(f"{what}, left out of every mean{cross}: {some(names)}{why}.")
    if waiting := [label(result, several) for result in recorded.results if result.waiting]:
        sentences.append(f"Unfinished, not counted in any mean: {some(waiting)}.")
    sentences += warnings(recorded, summary.score)
    if not several and any(row.top1 for row in summary.rows):
        sentences.append(_one_seed(summary))
    if (views := describe_views(recorded.study)) != UNLIMITED:
        sentences.append(f"Views limited to {views}: an approximation of the paper's unlimited random crops.")
    steps = recorded.facts.get("steps", {})
    if len(set(steps.values())) > 1:
        budgets = " and ".join(f"{number:,} steps on task {task}" for task, number in sorted(steps.items()))
        sentences.append(
            f"The tasks have different budgets: a network is trained for {budgets}. Layers from the other task's base "
            "have had that task's budget; networks that are compared on one task have had the same training there."
        )
    if recorded.facts.get("held_out"):
        sentences.append("The source has no validation images: they were cut from its training images.")
    if refused := recorded.facts.get("refused"):
        sentences.append(f"{count(refused, 'image')} could not be decoded and took no part.")
    return sentences


def _one_seed(summary: Summary) -> str:
    single = "One seed: every number rests on a single run for each task"
    if any(mean.half is not None for row in summary.rows for mean in row.difference.values()):
        return (
            f"{single}. ± is what the validation images alone can tell, a lower bound: another seed may move a number "
            "further. More seeds say how far."
        )
    return f"{single} and has no interval: small differences may be chance. More seeds give intervals."


def warnings(recorded: StudyResults, score: Score = "last") -> list[str]:
    """Return sentences on what is missing, confounded or stuck; none where all is well."""
    unit = recorded.facts.get("seeds_are", "seeds")
    return [*_stuck(recorded), *confounds(recorded.results, score, seeds_are=unit)]


def _stuck(recorded: StudyResults) -> list[str]:
    """Return sentences on networks that sat at the loss of an even guess, by what that means."""
    several = len({result.seed for result in recorded.results}) > 1
    bases: list[str] = []
    random: list[str] = []
    others: list[str] = []
    late: list[str] = []
    for result in recorded.results:
        classes, budget = class_count(recorded.facts, result.target), budget_of(recorded.results, result.target)
        if not classes or not stuck(result, classes, budget):
            continue
        if recovered(result, classes):
            share = f"{100 * share_at_chance(result, classes, budget):.0f} %"
            late.append(f"{result.name} (seed {result.seed}, {share})" if several else f"{result.name} ({share})")
        else:
            kind = bases if result.treatment == BASE else random if result.source in (RANDOM, HE) else others
            kind.append(label(result, several))
    word = Stages.of(recorded.facts).word
    early = [label(result, several) for result in recorded.results if result.state == "stuck"]
    sentences = (
        (
            bases,
            "Stuck at chance, their loss no better than an even guess's: {}. What is compared with such a base, or "
            "copied from it, says nothing about transfer; it is in every mean even so.",
        ),
        (
            others,
            "Stuck at chance, their loss no better than an even guess's: {}. They are in the means: training failed "
            "there, and how much of a cost is that failure cannot be told.",
        ),
        (
            random,
            f"Random controls stuck at chance: {{}}. Nothing that can be learned from passes their frozen {word}s: "
            "they do not tell what random features are worth, and are in the means.",
        ),
        (early, "Ended before the end of their training, at chance in every check: {}."),
        (late, f"At chance for more than {100 * STUCK_SHARE:.0f} % of training before learning began: {{}}."),
    )
    return [sentence.format(some(names)) for names, sentence in sentences if names]


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
    for treatment, control, unknown in _COMPARED:
        one, other = _scores(results, treatment, score), _scores(results, control, score)
        if one and control not in planned:
            sentences.append(f"No {control} was run: {unknown}.")
        elif one and other and one.keys() != other.keys():
            sentences.append(_unequal(treatment, control, one, other, unknown, seeds_are))
            sentences += _misleading(treatment, control, one, other)
    return sentences


def _scores(results: Sequence[Result], treatment: str, score: Score) -> Scores:
    """Return the finished networks of one treatment that have a base."""
    noise = Noise(results, score=score)
    tops = noise.values(lambda n: level((treatment, n)))
    return {cell: (tops[cell], gain) for cell, gain in noise.values(FROM_BASE[treatment].contrast).items()}


def _missing_bases(results: Sequence[Result], seeds_are: str) -> list[str]:
    bases = {(r.target, r.seed) for r in results if r.treatment == BASE and r.trained}
    halves = [(r.target, r.seed) for r in results if r.treatment != BASE and r.trained]
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
    paired, paired_control = (fmean(gain for _, gain in found.values()) for found in (one, other))
    if abs((plain - plain_control) - (paired - paired_control)) < _MISLEADS:
        return []
    return [
        f"Read off the unpaired means, {treatment} ({per_cent(plain)} %) is {_beside(plain - plain_control)} {control} "
        f"({per_cent(plain_control)} %); each paired with the base of its own half, it is "
        f"{_beside(paired - paired_control)} it ({points(paired, 2)} and {points(paired_control, 2)}). The rest is the "
        f"halves that were run, whose bases have {per_cent(plain - paired)} and "
        f"{per_cent(plain_control - paired_control)} %."
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
    amount = per_cent(abs(difference))
    if float(amount) == 0:
        return "level with"
    return f"{amount} points {'above' if difference > 0 else 'below'}"
