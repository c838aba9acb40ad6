"""What a study found, in sentences computed from its numbers, each with what it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fasttransfer.analysis import Estimate, Row, Score, Summary, mean_chance, summarise
from fasttransfer.records import Recorded
from fasttransfer.report.numbers import cost, decimals, per_cent

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
    found = (
        _frozen_transfer(summary, digits),
        _parts(summary, digits),
        _fine_tuning(summary, digits),
        _random(summary, digits, level),
    )
    kept = [finding for finding in found if finding is not None]
    return [
        replace(finding, text=_sentence(finding.text, _caution(summary) if i == 0 else ""))
        for i, finding in enumerate(kept)
    ]


def _caution(summary: Summary) -> str:
    """What the first sentence opens with where no number has an interval."""
    if len(summary.seeds) > 1:
        return ""
    return "in this single run, " if len(summary.targets) == 1 else "with one run for each task, "


def _sentence(text: str, opening: str) -> str:
    text = opening + text
    return f"{text[0].upper()}{text[1:]}."


def _frozen_transfer(summary: Summary, digits: int) -> Finding | None:
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
        text = f"copying and freezing {_layers(list(losses))} costs less than {limit}, {at_most}"
        return _finding(text, summary, list(losses.values()))
    if before := [n for n in losses if n < first]:
        stays = all(loss.value >= CHEAP for n, loss in losses.items() if n > first)
        text = (
            f"copying and freezing {_layers(before)} costs less than {limit}; "
            f"{'from layer' if stays else 'at n ='} {first} it costs {cost(losses[first], digits)}"
        )
    else:
        text = f"even copying and freezing {_layers([first])} costs {cost(losses[first], digits)} points"
    if most != first:
        text += f", rising to {peak}"
    return _finding(text, summary, list(losses.values()))


def _parts(summary: Summary, digits: int) -> Finding | None:
    split = [row for row in summary.rows if row.lost and row.co_adaptation and row.specificity]
    if not split:
        return None
    row = max(split, key=lambda row: row.lost.value if row.lost else 0.0)
    lost, co_adaptation, specificity = row.lost, row.co_adaptation, row.specificity
    if lost is None or co_adaptation is None or specificity is None or lost.value < _VISIBLE:
        return None
    least = 0.5 * 10 ** -(digits + 2)  # what rounds to zero is not called a part
    if co_adaptation.value < least:
        gains = "" if co_adaptation.value > -least else ", it gains a little"
        text = (
            f"the {cost(lost, digits)} points lost by the frozen transfer at n = {row.n} are all "
            f"specificity: the selffer there loses nothing{gains}"
        )
    elif specificity.value < least:
        text = (
            f"the {cost(lost, digits)} points lost by the frozen transfer at n = {row.n} are all "
            "co-adaptation: the selffer loses as much"
        )
    else:
        text = (
            f"of the {cost(lost, digits)} points lost by the frozen transfer at n = {row.n}, "
            f"{cost(co_adaptation, digits)} are co-adaptation and {cost(specificity, digits)} specificity"
        )
    peak = _peak(split)
    if peak is not None and peak.n != row.n and peak.co_adaptation is not None:
        text += f"; co-adaptation is largest at n = {peak.n}, {cost(peak.co_adaptation, digits)} points"
    return _finding(text, summary, [lost])


def _peak(rows: Sequence[Row]) -> Row | None:
    row = max(rows, key=lambda row: row.co_adaptation.value if row.co_adaptation else 0.0)
    return row if row.co_adaptation is not None and row.co_adaptation.value >= _VISIBLE else None


def _fine_tuning(summary: Summary, digits: int) -> Finding | None:
    boosts = [row.boost for row in summary.rows if row.boost is not None]
    if not boosts:
        return None
    mean = math.fsum(boost.value for boost in boosts) / len(boosts)
    text = f"fine-tuned, a network with copied layers ends {_from_base(mean, digits)} on average over n"
    over = [row.boost_over_selffer for row in summary.rows if row.boost_over_selffer is not None]
    if over:
        more = math.fsum(boost.value for boost in over) / len(over)
        side = "more" if more >= 0 else "less"
        text += f", {100 * abs(more):.{digits}f} {side} than the fine-tuned selffer"
    return _finding(text, summary, boosts)


def _random(summary: Summary, digits: int, level: float | None) -> Finding | None:
    measured = [(row.n, row.top1["random"]) for row in summary.rows if "random" in row.top1]
    if not measured:
        return None
    first_n, first = measured[0]
    least_n, least = min(measured, key=lambda item: item[1].value)
    text = f"frozen random layers give {per_cent(first.value, digits)} % at n = {first_n}"
    if least_n != first_n:
        text += f" and fall to {per_cent(least.value, digits)} % at n = {least_n}"
    if level is not None:
        text += f", against chance {per_cent(level, digits)} %"
    return _finding(text, summary, [value for _, value in measured])


def _finding(text: str, summary: Summary, estimates: Sequence[Estimate]) -> Finding:
    fewest, most = min(e.runs for e in estimates), max(e.runs for e in estimates)
    if most == 1:
        return Finding(text, "one run for each n, so no interval")
    if all(e.half is None for e in estimates):
        return Finding(text, f"mean of {len(summary.targets)} tasks, one run each, so no interval")
    basis = f"{most} runs for each n" if fewest == most else f"{fewest} to {most} runs for each n"
    return Finding(text, f"{basis}; ± is a 95 % interval over seeds")


def _layers(counts: Sequence[int]) -> str:
    """The n of `counts` in words; what was not measured is not claimed."""
    if list(counts) == [1]:
        return "the first layer"
    if len(counts) == 1:
        return f"the first {counts[0]} layers"
    if list(counts) == list(range(1, len(counts) + 1)):
        return f"up to layer {counts[-1]}"
    return f"n = {', '.join(map(str, counts))} layers"


def _from_base(difference: float, digits: int) -> str:
    amount = f"{100 * abs(difference):.{digits}f}"
    if float(amount) == 0:
        return "level with its base"
    return f"{amount} points {'above' if difference > 0 else 'below'} its base"
