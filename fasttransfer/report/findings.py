"""What a study found, in sentences computed from its numbers, each with what it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fasttransfer.analysis import (
    STUCK_SHARE,
    Estimate,
    Row,
    Score,
    Summary,
    budget_of,
    class_count,
    confounds,
    mean_chance,
    recovered,
    share_at_chance,
    stuck,
    summarise,
)
from fasttransfer.records import Recorded, Result
from fasttransfer.report.numbers import cost, decimals, half, label, per_cent, some

CHEAP = 0.02  # a frozen transfer that costs less than these two points is called cheap
_VISIBLE = 0.005  # losses below half a point are not taken apart


@dataclass(frozen=True)
class Finding:
    """`basis` says how many runs are behind the sentence, so that nobody reads one run as a law."""

    text: str
    basis: str


def findings(recorded: Recorded, score: Score = "last") -> list[Finding]:
    """The headline sentences of a study, over all its targets and seeds; none while nothing is comparable."""
    summary = summarise(recorded.results, score=score)
    digits = decimals(recorded.facts, summary.targets)
    level = mean_chance(recorded.facts, summary.targets)
    unit = recorded.facts.get("seeds_are", "seeds")
    found = (
        _frozen_transfer(summary, digits, unit),
        _parts(summary, digits, unit),
        _fine_tuning(summary, digits, unit),
        _random(summary, "random", "frozen random layers", digits, level, unit),
        _random(summary, "random-he", "with He's initial values frozen random layers", digits, level, unit),
    )
    kept = [finding for finding in found if finding is not None]
    return [
        replace(finding, text=_sentence(finding.text, _caution(summary) if i == 0 else ""))
        for i, finding in enumerate(kept)
    ]


def warnings(recorded: Recorded, score: Score = "last") -> list[str]:
    """What is missing, confounded or stuck, in sentences for the report; none where all is well."""
    unit = recorded.facts.get("seeds_are", "seeds")
    return [*_stuck(recorded), *confounds(recorded.results, score, seeds_are=unit)]


def _stuck(recorded: Recorded) -> list[str]:
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
    """What the first sentence opens with where no number has an interval."""
    estimates = [found for row in summary.rows for found in row.difference.values()]
    if any(found.half is not None for found in estimates):
        return ""
    if len(summary.seeds) > 1:
        return "without an interval anywhere, "
    return "in this single run, " if len(summary.targets) == 1 else "with one run for each task, "


def _sentence(text: str, opening: str) -> str:
    text = opening + text
    return f"{text[0].upper()}{text[1:]}."


def _frozen_transfer(summary: Summary, digits: int, unit: str) -> Finding | None:
    losses = {
        row.n: replace(difference, value=-difference.value)
        for row in summary.rows
        if (difference := row.difference.get("transfer")) is not None
    }
    if not losses:
        return None
    most = max(losses, key=lambda n: losses[n].value)
    peak = f"{cost(losses[most], digits)} at n = {most}"
    limit = f"{100 * CHEAP:.0f} points"
    first = next((n for n in losses if losses[n].value >= CHEAP), None)
    if first is None:
        at_most = f"at most {peak}" if losses[most].value > 0 else "indeed nothing"
        text = (
            f"copying and freezing {_layers(list(losses))} costs less than {limit}, {at_most}{_doubt(losses, losses)}"
        )
        return _finding(text, summary, list(losses.values()), unit)
    if before := [n for n in losses if n < first]:
        stays = all(loss.value >= CHEAP for n, loss in losses.items() if n > first)
        text = (
            f"copying and freezing {_layers(before)} costs less than {limit}{_doubt(losses, before)}; "
            f"{'from layer' if stays else 'at n ='} {first} it costs {cost(losses[first], digits)}"
        )
    else:
        text = f"even copying and freezing {_layers([first])} costs {cost(losses[first], digits)} points"
    if most != first:
        text += f", rising to {peak}"
    return _finding(text, summary, list(losses.values()), unit)


def _doubt(losses: dict[int, Estimate], cheap: Iterable[int]) -> str:
    """Where a cost that is called cheap by its mean may be none by its interval."""
    most = {n: loss.value + loss.half for n in cheap if (loss := losses[n]).half is not None}
    doubtful = [n for n, at_most in most.items() if at_most >= CHEAP]
    return f" (by their intervals not for sure at n = {', '.join(map(str, doubtful))})" if doubtful else ""


def _parts(summary: Summary, digits: int, unit: str) -> Finding | None:
    split = [row for row in summary.rows if row.lost and row.co_adaptation and row.specificity]
    if not split:
        return None
    row = max(split, key=lambda row: row.lost.value if row.lost else 0.0)
    lost, co_adaptation, specificity = row.lost, row.co_adaptation, row.specificity
    if lost is None or co_adaptation is None or specificity is None or lost.value < _VISIBLE:
        return None
    least = 0.5 * 10 ** -(digits + 2)  # what rounds to zero is not called a part
    if co_adaptation.value < least:
        gained = replace(co_adaptation, value=-co_adaptation.value)
        kept = "loses nothing" if co_adaptation.value > -least else f"gains {cost(gained, digits)}"
        text = (
            f"the {cost(lost, digits)} points lost by the frozen transfer at n = {row.n} are all "
            f"specificity: the selffer there {kept}"
        )
    elif specificity.value < least:
        as_much = "as much" if specificity.value > -least else f"even {cost(co_adaptation, digits)}"
        text = (
            f"the {cost(lost, digits)} points lost by the frozen transfer at n = {row.n} are all "
            f"co-adaptation: the selffer there loses {as_much}"
        )
    else:
        text = (
            f"of the {cost(lost, digits)} points lost by the frozen transfer at n = {row.n}, "
            f"{cost(co_adaptation, digits)} are co-adaptation and {cost(specificity, digits)} specificity"
        )
    peak = _peak(split)
    if peak is not None and peak.n != row.n and peak.co_adaptation is not None:
        text += f"; co-adaptation is largest at n = {peak.n}, {cost(peak.co_adaptation, digits)} points"
    return _finding(text, summary, [lost], unit)


def _peak(rows: Sequence[Row]) -> Row | None:
    row = max(rows, key=lambda row: row.co_adaptation.value if row.co_adaptation else 0.0)
    return row if row.co_adaptation is not None and row.co_adaptation.value >= _VISIBLE else None


def _fine_tuning(summary: Summary, digits: int, unit: str) -> Finding | None:
    boost, selffer = summary.difference.get("transfer+"), summary.difference.get("selffer+")
    if boost is None:
        return None
    text = f"fine-tuned, a network with copied layers ends {_from_base(boost, digits)} on average over n"
    over = summary.boost_over_selffer
    if over is not None:
        amount = cost(replace(over, value=abs(over.value)), digits)
        if float(amount.split()[0]) == 0:
            text += f", level with the fine-tuned selffer{half(over, digits)}"
        else:
            text += f", {amount} {'more' if over.value > 0 else 'less'} than the fine-tuned selffer"
            if over.half is not None and over.half >= abs(over.value):
                text += ", a difference that may be chance"
    elif selffer is not None:
        text += (
            "; the fine-tuned selffer, which was not run on the same halves and cuts, ends "
            f"{_from_base(selffer, digits)}, so whether the other task adds anything cannot be told"
        )
    return _finding(text, summary, [row.boost for row in summary.rows if row.boost is not None], unit)


def _random(
    summary: Summary, treatment: str, subject: str, digits: int, level: float | None, unit: str
) -> Finding | None:
    measured = [(row.n, row.top1[treatment]) for row in summary.rows if treatment in row.top1]
    if not measured:
        return None
    first_n, first = measured[0]
    least_n, least = min(measured, key=lambda item: item[1].value)
    text = f"{subject} give {per_cent(first.value, digits)} % at n = {first_n}"
    if least_n != first_n:
        text += f" and fall to {per_cent(least.value, digits)} % at n = {least_n}"
    if level is not None:
        text += f", against chance {per_cent(level, digits)} %"
    return _finding(text, summary, [value for _, value in measured], unit)


def _finding(text: str, summary: Summary, estimates: Sequence[Estimate], unit: str) -> Finding:
    fewest, most = min(e.runs for e in estimates), max(e.runs for e in estimates)
    if most == 1:
        return Finding(text, "one run for each n, so no interval")
    if all(e.half is None for e in estimates) and max(e.seeds for e in estimates) == 1:
        return Finding(text, f"mean of {len(summary.targets)} tasks, one run each, so no interval")
    basis = f"{most} runs for each n" if fewest == most else f"{fewest} to {most} runs for each n"
    if all(e.half is None for e in estimates):
        return Finding(text, f"{basis}, not enough on any one task for an interval")
    if "±" not in text:
        return Finding(text, basis)
    seeds = sorted({e.seeds for e in estimates if e.half is not None})
    over = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    few = "; with two it is wide" if seeds[0] == 2 else ""
    return Finding(text, f"{basis}; ± is a 95 % interval over {over} {unit}{few}")


def _layers(counts: Sequence[int]) -> str:
    """The n of `counts` in words; what was not measured is not claimed."""
    if list(counts) == [1]:
        return "the first layer"
    if len(counts) == 1:
        return f"the first {counts[0]} layers"
    if list(counts) == list(range(1, len(counts) + 1)):
        return f"up to layer {counts[-1]}"
    return f"n = {', '.join(map(str, counts))} layers"


def _from_base(difference: Estimate, digits: int) -> str:
    amount = f"{100 * abs(difference.value):.{digits}f}"
    if float(amount) == 0:
        return f"level with its base{half(difference, digits)}"
    return f"{amount}{half(difference, digits)} points {'above' if difference.value > 0 else 'below'} its base"
