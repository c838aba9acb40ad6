"""The findings of a study: sentences computed from its numbers, each with the runs that it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fasttransfer.core.intervals import Estimate
from fasttransfer.report.analysis.effects import BOOST, NOT_COUNTED, SPECIFICITY, WORTH, WORTH_PLUS
from fasttransfer.report.analysis.summary import Decomposition, Summary, decompose, summarise
from fasttransfer.report.numbers import (
    MINUS,
    cost,
    count,
    decimals,
    half,
    intervals,
    is_within_noise,
    networks,
    per_cent,
    signed,
)
from fasttransfer.report.stages import Stages
from fasttransfer.report.verdict import verdict
from fasttransfer.study.chance import mean_chance
from fasttransfer.study.records import Score, StudyResults

CHEAP = 0.02  # top-1; frozen transfer that costs less is called cheap
_VISIBLE = 0.005  # top-1; smaller costs are not taken apart


@dataclass(frozen=True)
class Finding:
    """A sentence; `basis` says how many runs are behind it, so that nobody reads one run as a law."""

    text: str
    basis: str


@dataclass(frozen=True)
class _Context:
    """The numbers that all sentences share; `unit` is the study's word for its seeds."""

    summary: Summary
    decomposition: Decomposition
    digits: int
    unit: str
    is_unfinished: bool  # the bases
    stages: Stages


def findings(recorded: StudyResults, score: Score = "last") -> list[Finding]:
    """Return the headline sentences of a study, over all its targets and seeds; none while nothing is comparable.

    Each compares networks at equal training wherever the study has them, so that it would hold were all networks
    trained twice as long. A sentence that compares with the base calls that the paper's comparison, and is left out
    where the bases had not finished learning.
    """
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    judged = verdict(recorded, score)
    context = _Context(
        summary,
        decompose(recorded, summary),
        decimals(recorded.facts, summary.targets),
        recorded.facts.get("seeds_are", "seeds"),
        judged is not None and judged.is_bad,
        Stages.of(recorded.facts),
    )
    level = mean_chance(recorded.facts, summary.targets)
    every = (
        _frozen_transfer(context),
        _parts(context),
        _fine_tuning(context),
        _worth(context),
        _random(context, "random", "", level),
        _random(context, "random-he", "with He's initial values ", level),
    )
    stated = [finding for finding in every if finding is not None]
    openings = [_caution(summary), *[""] * len(stated)]  # only of the first sentence
    return [replace(one, text=_sentence(opening + one.text)) for opening, one in zip(openings, stated, strict=False)]


def _caution(summary: Summary) -> str:
    """Return how the first sentence opens where every number rests on one run of each task, or has no interval."""
    if len(summary.seeds) == 1:
        return "in this single run, " if len(summary.targets) == 1 else "with one run for each task, "
    has_interval = any(mean.half is not None for row in summary.rows for mean in row.difference.values())
    return "" if has_interval else "without an interval anywhere, "


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _frozen_transfer(context: _Context) -> Finding | None:
    parts = context.decomposition
    if parts.is_equal:
        costs = {row.n: row.effects[parts.whole] for row in parts.rows}
    else:  # the paper's whole cost is over all frozen transfers, also those without a selffer
        from_base = {row.n: row.difference.get("transfer") for row in context.summary.rows}
        costs = {n: replace(mean, value=-mean.value) for n, mean in from_base.items() if mean is not None}
    if not costs:
        return None
    if not parts.is_equal and context.is_unfinished:
        text = (
            "what copying and freezing costs is not stated: the study has no fine-tuned selffer beside its frozen "
            "transfer, and the distance from a base that had not finished learning measures the missing training too"
        )
        return Finding(text, "the study has base+ and no selffer+")
    digits = context.digits
    against = (
        f"at equal training (selffer+ {MINUS} transfer)"
        if parts.is_equal
        else "against the base, as the paper compares,"
    )
    most = max(costs, key=lambda n: costs[n].value)
    stages = context.stages
    peak = f"{cost(costs[most], digits)} at {stages.at(most)}{_noise(costs[most])}"
    limit = f"{100 * CHEAP:.0f} points"
    first = next((n for n in costs if costs[n].value >= CHEAP), None)
    if first is None:
        at_most = f"at most {peak}" if costs[most].value > 0 else "indeed nothing"
        text = (
            f"{against} copying and freezing {_cuts(stages, list(costs))} costs less than {limit}, {at_most}"
            f"{_doubt(stages, costs, costs)}"
        )
        return _finding(text, context, list(costs.values()))
    start = f"{cost(costs[first], digits)}{_noise(costs[first])}"
    if before := [n for n in costs if n < first]:
        stays = all(loss.value >= CHEAP for n, loss in costs.items() if n > first)
        text = (
            f"{against} copying and freezing {_cuts(stages, before)} costs less than {limit}"
            f"{_doubt(stages, costs, before)}; "
            f"{f'from {stages.one(first)}' if stays else f'at {stages.at(first)}'} it costs {start}"
        )
    else:
        text = f"{against} even copying and freezing {_cuts(stages, [first])} costs {start} points"
    if most != first:
        text += f", rising to {peak}"
    return _finding(text, context, list(costs.values()))


def _noise(estimate: Estimate) -> str:
    return " (not distinguishable from zero)" if is_within_noise(estimate) else ""


def _doubt(stages: Stages, losses: dict[int, Estimate], cheap: Iterable[int]) -> str:
    """Return where costs that are cheap by their means may not be so by their intervals."""
    most = {n: loss.value + loss.half for n in cheap if (loss := losses[n]).half is not None}
    doubtful = [n for n, at_most in most.items() if at_most >= CHEAP]
    return f" (by their intervals not for sure at {stages.at(*doubtful)})" if doubtful else ""


def _parts(context: _Context) -> Finding | None:
    parts = context.decomposition
    if not parts.complete or (not parts.is_equal and context.is_unfinished):
        return _specificity(context)
    digits = context.digits
    row = max(parts.complete, key=lambda row: row.effects[parts.whole].value)
    whole, first, specificity = (row.effects[effect] for effect in (parts.whole, parts.first, SPECIFICITY))
    if whole.value < _VISIBLE or is_within_noise(whole):
        return None
    # The sentence before is over all frozen transfers that have a base.
    transfers = whole.runs if parts.is_equal else row.difference["transfer"].runs
    where = "" if whole.runs == transfers else f" in the {whole.runs} of {transfers} runs that have a selffer too"
    text = (
        f"of the {cost(whole, digits)} points that frozen transfer costs at {context.stages.at(row.n)}{where}, "
        f"{cost(first, digits)}{_noise(first)} are {parts.first.name} ({networks(parts.first)}) and "
        f"{cost(specificity, digits)}{_noise(specificity)} specificity ({networks(SPECIFICITY)})"
    )
    peak = max(parts.complete, key=lambda row: row.effects[parts.first].value)
    most = peak.effects[parts.first]
    if peak.n != row.n and most.value >= _VISIBLE and not is_within_noise(most):
        text += f"; {parts.first.name} is largest at {context.stages.at(peak.n)}, {cost(most, digits)} points"
    return _finding(text, context, [whole, first, specificity])


def _specificity(context: _Context) -> Finding | None:
    """Return the sentence on the one part that needs no base: both networks have had the same training."""
    known = {row.n: one for row in context.summary.rows if (one := row[SPECIFICITY])}
    if not known:
        return None
    most, word = max(known, key=lambda n: known[n].value), context.stages.word
    if known[most].value <= 0:
        text = f"frozen, the other task's {word}s cost nothing beside the task's own ({networks(SPECIFICITY)})"
    else:
        text = (
            f"frozen, the other task's {word}s cost at most {cost(known[most], context.digits)}{_noise(known[most])} "
            f"points more than the task's own ({networks(SPECIFICITY)}), at {context.stages.at(most)}"
        )
    return _finding(text, context, list(known.values()))


def _fine_tuning(context: _Context) -> Finding | None:
    summary, digits = context.summary, context.digits
    from_base, boost = summary.difference.get("transfer+"), summary[BOOST]
    if from_base is None and boost is None:
        return None
    tail = "" if from_base is None or context.is_unfinished else f"; {_papers_boost(from_base, digits)}"
    if boost is None:
        text = (
            "whether fine-tuned transfer has anything from the other task cannot be told: no fine-tuned selffer was "
            f"run on the same halves and cuts{tail}"
        )
        means = [row.difference["transfer+"] for row in summary.rows if "transfer+" in row.difference]
        return _finding(text, context, means)
    mean = f"({networks(BOOST)}, mean over n)"
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
    return _finding(text + tail, context, [boost])


def _papers_boost(from_base: Estimate, digits: int) -> str:
    return (
        f"the paper's comparison, transfer+ {MINUS} base, is {signed(from_base, digits)}{_noise(from_base)} and "
        "contains what training on for one more schedule does to the base itself"
    )


def _worth(context: _Context) -> Finding | None:
    """Return the sentence on the pretrained weights beside the weights of the task's own base."""
    clauses: list[str] = []
    estimates: list[Estimate] = []
    for effect, how in ((WORTH, "they stay frozen"), (WORTH_PLUS, "they are fine-tuned")):
        if found := {row.n: one for row in context.summary.rows if (one := row[effect])}:
            n, most = max(found.items(), key=lambda item: item[1].value)
            amount = f"{'at most ' if len(found) > 1 else ''}{signed(most, context.digits)}"
            where = f"at {context.stages.at(n)} where {how} ({networks(effect)})"
            clauses.append(f"{amount} points{_noise(most)} {where}")
            estimates += found.values()
    if not clauses:
        return None
    text = f"beside the task's own weights the pretrained ones are worth {' and '.join(clauses)}; {NOT_COUNTED}"
    return _finding(text, context, estimates)


def _random(context: _Context, treatment: str, which: str, level: float | None) -> Finding | None:
    digits = context.digits
    measured = [(row.n, row.top1[treatment]) for row in context.summary.rows if treatment in row.top1]
    if not measured:
        return None
    first_n, first = measured[0]
    least_n, least = min(measured, key=lambda item: item[1].value)
    stages = context.stages
    text = f"{which}frozen random {stages.word}s give {per_cent(first.value, digits)} % at {stages.at(first_n)}"
    if least_n != first_n:
        text += f" and fall to {per_cent(least.value, digits)} % at {stages.at(least_n)}"
    if level is not None:
        text += f", against chance {per_cent(level, digits)} %"
    return _finding(text, context, [value for _, value in measured])


def _finding(text: str, context: _Context, estimates: Sequence[Estimate]) -> Finding:
    """Return the sentence with the number of runs behind it, and with what its ± is made of."""
    fewest, most = min(e.runs for e in estimates), max(e.runs for e in estimates)
    runs = count(most, "run") if fewest == most else f"{fewest} to {most} runs"
    over = "over all n" if len(estimates) == 1 and "mean over n" in text else "for each n"
    basis = f"{runs} {over}"
    if all(e.half is None for e in estimates):
        return Finding(text, f"{basis}, no interval")
    if "±" not in text:
        return Finding(text, basis)
    return Finding(text, f"{basis}; {intervals(estimates, context.unit)}")


def _cuts(stages: Stages, cuts: Sequence[int]) -> str:
    """Return `cuts` in words, which claim nothing that was not measured."""
    if len(cuts) == 1:
        return stages.first(cuts[0])
    if list(cuts) == list(range(1, len(cuts) + 1)):
        return f"up to {stages.one(cuts[-1])}"
    return f"at {stages.at(*cuts)}"
