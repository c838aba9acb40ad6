"""What a study found, in sentences computed from its numbers, each with what it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fasttransfer.report.analysis import (
    BOOST,
    SPECIFICITY,
    STUCK_SHARE,
    Decomposition,
    Effect,
    Estimate,
    Score,
    Summary,
    budget_of,
    class_count,
    confounds,
    decompose,
    mean_chance,
    recovered,
    share_at_chance,
    stuck,
    summarise,
)
from fasttransfer.report.numbers import (
    MINUS,
    cost,
    count,
    decimals,
    half,
    intervals,
    is_within_noise,
    label,
    per_cent,
    signed,
    some,
)
from fasttransfer.report.verdict import verdict
from fasttransfer.study.records import Result, StudyResults

CHEAP = 0.02  # frozen transfer that costs less than these two points is called cheap
_VISIBLE = 0.005  # losses below half a point are not taken apart


@dataclass(frozen=True)
class Finding:
    """`basis` says how many runs are behind the sentence, so that nobody reads one run as a law."""

    text: str
    basis: str


@dataclass(frozen=True)
class _Context:
    """What all sentences share; `unit` is what the study's seeds are called."""

    summary: Summary
    decomposition: Decomposition
    digits: int
    unit: str
    is_unfinished: bool  # the bases


def findings(recorded: StudyResults, score: Score = "last") -> list[Finding]:
    """The headline sentences of a study, over all its targets and seeds; none while nothing is comparable.

    Each compares networks at equal training wherever the study has them, so that it would hold were all networks
    trained twice as long. What is measured from the base is called the paper's comparison, and is not stated where the
    bases had not finished learning.
    """
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    told = verdict(recorded, score)
    context = _Context(
        summary,
        decompose(recorded, summary),
        decimals(recorded.facts, summary.targets),
        recorded.facts.get("seeds_are", "seeds"),
        told is not None and told.is_bad,
    )
    level = mean_chance(recorded.facts, summary.targets)
    found = (
        _frozen_transfer(context),
        _parts(context),
        _fine_tuning(context),
        _random(context, "random", "frozen random layers", level),
        _random(context, "random-he", "with He's initial values frozen random layers", level),
    )
    kept = [finding for finding in found if finding is not None]
    return [
        replace(finding, text=_sentence(finding.text, _caution(summary) if i == 0 else ""))
        for i, finding in enumerate(kept)
    ]


def warnings(recorded: StudyResults, score: Score = "last") -> list[str]:
    """What is missing, confounded or stuck, in sentences for the report; none where all is well."""
    unit = recorded.facts.get("seeds_are", "seeds")
    return [*_stuck(recorded), *confounds(recorded.results, score, seeds_are=unit)]


def _stuck(recorded: StudyResults) -> list[str]:
    """Networks that sat at the loss of an even guess, told apart by what that means."""
    several = len({result.seed for result in recorded.results}) > 1
    found: dict[str, list[Result]] = {"bases": [], "random": [], "others": []}
    late = []
    budgets = {target: budget_of(recorded.results, target) for target in {r.target for r in recorded.results}}
    for result in recorded.results:
        classes = class_count(recorded.facts, result.target)
        budget = budgets[result.target]
        if not classes or not stuck(result, classes, budget):
            continue
        if recovered(result, classes):
            share = f"{100 * share_at_chance(result, classes, budget):.0f} %"
            late.append(f"{result.name} (seed {result.seed}, {share})" if several else f"{result.name} ({share})")
            continue
        kind = "bases" if result.treatment == "base" else "random" if result.source in ("R", "H") else "others"
        found[kind].append(result)
    told = []
    if found["bases"]:
        told.append(
            f"Stuck at chance, their loss no better than an even guess's: {_names(found['bases'], several)}. What is "
            "compared with such a base, or copied from it, says nothing about transfer; it is in every mean even so."
        )
    if found["others"]:
        told.append(
            f"Stuck at chance, their loss no better than an even guess's: {_names(found['others'], several)}. They are "
            "in the means: training failed there, and how much of a cost is that failure cannot be told."
        )
    if found["random"]:
        told.append(
            f"Random controls stuck at chance: {_names(found['random'], several)}. Nothing that can be learned from "
            "passes their frozen layers: they do not tell what random features are worth, and are in the means."
        )
    if early := [result for result in recorded.results if result.state == "stuck"]:
        told.append(f"Ended before the end of their training, at chance in every check: {_names(early, several)}.")
    if late:
        told.append(
            f"At chance for more than {100 * STUCK_SHARE:.0f} % of training before learning began: {some(late)}."
        )
    return told


def _names(results: Sequence[Result], several: bool) -> str:
    return some([label(result, several) for result in results])


def _caution(summary: Summary) -> str:
    """What the first sentence opens with where every number rests on one run of each task, or none has an interval."""
    if len(summary.seeds) == 1:
        return "in this single run, " if len(summary.targets) == 1 else "with one run for each task, "
    estimates = [found for row in summary.rows for found in row.difference.values()]
    return "" if any(found.half is not None for found in estimates) else "without an interval anywhere, "


def _sentence(text: str, opening: str) -> str:
    text = opening + text
    return f"{text[0].upper()}{text[1:]}."


def _frozen_transfer(context: _Context) -> Finding | None:
    found = context.decomposition
    if found.is_equal:
        costs = {row.n: row.effects[found.whole] for row in found.rows}
    else:  # the paper's whole cost is over all frozen transfers, also those without a selffer
        from_base = {row.n: row.difference.get("transfer") for row in context.summary.rows}
        costs = {n: replace(mean, value=-mean.value) for n, mean in from_base.items() if mean is not None}
    if not costs:
        return None
    if not found.is_equal and context.is_unfinished:
        text = (
            "what copying and freezing costs is not stated: the study has no fine-tuned selffer beside its frozen "
            "transfer, and the distance from a base that had not finished learning measures the missing training too"
        )
        return Finding(text, "the study has base+ and no selffer+")
    digits = context.digits
    against = (
        f"at equal training (selffer+ {MINUS} transfer)"
        if found.is_equal
        else "against the base, as the paper compares,"
    )
    most = max(costs, key=lambda n: costs[n].value)
    peak = f"{cost(costs[most], digits)} at n = {most}{_noise(costs[most])}"
    limit = f"{100 * CHEAP:.0f} points"
    first = next((n for n in costs if costs[n].value >= CHEAP), None)
    if first is None:
        at_most = f"at most {peak}" if costs[most].value > 0 else "indeed nothing"
        text = (
            f"{against} copying and freezing {_layers(list(costs))} costs less than {limit}, {at_most}"
            f"{_doubt(costs, costs)}"
        )
        return _finding(text, context, list(costs.values()))
    start = f"{cost(costs[first], digits)}{_noise(costs[first])}"
    if before := [n for n in costs if n < first]:
        stays = all(loss.value >= CHEAP for n, loss in costs.items() if n > first)
        text = (
            f"{against} copying and freezing {_layers(before)} costs less than {limit}{_doubt(costs, before)}; "
            f"{'from layer' if stays else 'at n ='} {first} it costs {start}"
        )
    else:
        text = f"{against} even copying and freezing {_layers([first])} costs {start} points"
    if most != first:
        text += f", rising to {peak}"
    return _finding(text, context, list(costs.values()))


def _noise(estimate: Estimate) -> str:
    return " (not distinguishable from zero)" if is_within_noise(estimate) else ""


def _doubt(losses: dict[int, Estimate], cheap: Iterable[int]) -> str:
    """Where a cost that is called cheap by its mean may be none by its interval."""
    most = {n: loss.value + loss.half for n in cheap if (loss := losses[n]).half is not None}
    doubtful = [n for n, at_most in most.items() if at_most >= CHEAP]
    return f" (by their intervals not for sure at n = {', '.join(map(str, doubtful))})" if doubtful else ""


def _parts(context: _Context) -> Finding | None:
    found = context.decomposition
    if not found.complete or (not found.is_equal and context.is_unfinished):
        return _specificity(context)
    digits = context.digits
    row = max(found.complete, key=lambda row: row.effects[found.whole].value)
    whole, first, specificity = (row.effects[effect] for effect in (found.whole, found.first, SPECIFICITY))
    if whole.value < _VISIBLE or is_within_noise(whole):
        return None
    text = (
        f"of the {cost(whole, digits)} points that frozen transfer costs at n = {row.n}, "
        f"{cost(first, digits)}{_noise(first)} are {found.first.name} ({_networks(found.first)}) and "
        f"{cost(specificity, digits)}{_noise(specificity)} specificity ({_networks(SPECIFICITY)})"
    )
    peak = max(found.complete, key=lambda row: row.effects[found.first].value)
    most = peak.effects[found.first]
    if peak.n != row.n and most.value >= _VISIBLE and not is_within_noise(most):
        text += f"; {found.first.name} is largest at n = {peak.n}, {cost(most, digits)} points"
    return _finding(text, context, [whole, first, specificity])


def _networks(effect: Effect) -> str:
    return effect.networks.replace(" - ", f" {MINUS} ")


def _specificity(context: _Context) -> Finding | None:
    """The one piece that needs no base: both networks have had the same training."""
    known = {row.n: found for row in context.summary.rows if (found := row[SPECIFICITY])}
    if not known:
        return None
    most = max(known, key=lambda n: known[n].value)
    text = (
        f"frozen, the other task's layers cost at most {cost(known[most], context.digits)}{_noise(known[most])} points "
        f"more than the task's own (selffer {MINUS} transfer), at n = {most}"
    )
    if known[most].value <= 0:
        text = f"frozen, the other task's layers cost nothing beside the task's own (selffer {MINUS} transfer)"
    return _finding(text, context, list(known.values()))


def _fine_tuning(context: _Context) -> Finding | None:
    summary, digits = context.summary, context.digits
    from_base, boost = summary.difference.get("transfer+"), summary[BOOST]
    if from_base is None and boost is None:
        return None
    if boost is None:
        text = "whether fine-tuned transfer has anything from the other task cannot be told"
        text += ": no fine-tuned selffer was run on the same halves and cuts"
        if from_base is not None and not context.is_unfinished:
            text += f"; {_papers_boost(from_base, digits)}"
        means = [row.difference["transfer+"] for row in summary.rows if "transfer+" in row.difference]
        return _finding(text, context, means)
    mean = f"(transfer+ {MINUS} selffer+, mean over n)"
    amount = cost(replace(boost, value=abs(boost.value)), digits)
    if float(amount.split()[0]) == 0:
        text = f"fine-tuned transfer ends level with fine-tuned selffer{half(boost, digits)} {mean}"
    elif is_within_noise(boost):
        text = (
            f"fine-tuned transfer is not distinguishable from fine-tuned selffer: {signed(boost, digits)} points {mean}"
        )
    else:
        side = "above" if boost.value > 0 else "below"
        text = f"fine-tuned transfer ends {amount} points {side} fine-tuned selffer {mean}"
    unpaired = sum(1 for row in summary.rows if row[BOOST] is None and "transfer+" in row.difference)
    if unpaired:
        text += f", where both were run: at {len(summary.rows) - unpaired} of {len(summary.rows)} n"
    if from_base is not None and not context.is_unfinished:
        text += f"; {_papers_boost(from_base, digits)}"
    return _finding(text, context, [boost])


def _papers_boost(from_base: Estimate, digits: int) -> str:
    return (
        f"the paper's comparison, transfer+ {MINUS} base, is {signed(from_base, digits)}{_noise(from_base)} and "
        "contains what training on for one more schedule does to the base itself"
    )


def _random(context: _Context, treatment: str, subject: str, level: float | None) -> Finding | None:
    digits = context.digits
    measured = [(row.n, row.top1[treatment]) for row in context.summary.rows if treatment in row.top1]
    if not measured:
        return None
    first_n, first = measured[0]
    least_n, least = min(measured, key=lambda item: item[1].value)
    text = f"{subject} give {per_cent(first.value, digits)} % at n = {first_n}"
    if least_n != first_n:
        text += f" and fall to {per_cent(least.value, digits)} % at n = {least_n}"
    if level is not None:
        text += f", against chance {per_cent(level, digits)} %"
    return _finding(text, context, [value for _, value in measured])


def _finding(text: str, context: _Context, estimates: Sequence[Estimate]) -> Finding:
    """The sentence with how many runs are behind its numbers, and what its ± is made of."""
    fewest, most = min(e.runs for e in estimates), max(e.runs for e in estimates)
    runs = count(most, "run") if fewest == most else f"{fewest} to {most} runs"
    over = "over all n" if len(estimates) == 1 and "mean over n" in text else "for each n"
    basis = f"{runs} {over}"
    if all(e.half is None for e in estimates):
        return Finding(text, f"{basis}, no interval")
    if "±" not in text:
        return Finding(text, basis)
    return Finding(text, f"{basis}; {intervals(estimates, context.unit)}")


def _layers(counts: Sequence[int]) -> str:
    """The n of `counts` in words; what was not measured is not claimed."""
    if list(counts) == [1]:
        return "the first layer"
    if len(counts) == 1:
        return f"the first {counts[0]} layers"
    if list(counts) == list(range(1, len(counts) + 1)):
        return f"up to layer {counts[-1]}"
    return f"n = {', '.join(map(str, counts))} layers"
