"""Advice in words and as a table for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from fasttransfer.core.intervals import Estimate
from fasttransfer.report.analysis.advice import CHOICES, CONTROLS, Advice, Choice
from fasttransfer.report.analysis.effects import NOT_COUNTED
from fasttransfer.report.findings import CHEAP
from fasttransfer.report.numbers import (
    MINUS,
    cost,
    decimals,
    intervals,
    is_within_noise,
    label,
    per_cent,
    plain,
    signed,
    some,
)
from fasttransfer.report.stages import Stages
from fasttransfer.report.table import grid
from fasttransfer.report.verdict import verdict
from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.chance import class_count, stuck
from fasttransfer.study.records import StudyResults


def advice_table(recorded: StudyResults, advice: Advice) -> RenderableType:
    """Return, for rich in 80 columns, the verdict on the base, a line for each choice and the sentences."""
    digits = decimals(recorded.facts, [advice.target])
    stages = Stages.of(recorded.facts)
    table = grid([f"on {advice.target}"], ["runs", "top-1, %", "- scratch", "behind best", "work saved"])
    table.add_column("")
    for choice in advice.choices:
        best = choice == advice.best
        table.add_row(
            _short(choice),
            str(choice.top1.runs),
            per_cent(choice.top1.value, digits),
            "" if choice.difference is None else plain(signed(choice.difference, digits)),
            "" if best else plain(cost(choice.behind, digits)),
            "" if choice.saves is None else f"{100 * choice.saves:.0f} %",
            "best" if best else "cheapest" if choice == advice.cheapest else "",
        )
    judged = verdict(recorded, advice.score, advice.target)
    lead = [] if judged is None else [judged.text]
    cuts = sorted({choice.n for choice in advice.choices if choice.n})
    named = [f"Stages: {', '.join(map(stages.label, cuts))}."] if stages.names else []  # a column would be too wide
    told = [*named, *sentences(recorded, advice)]
    return Group(*(Text(plain(text)) for text in lead), table, *(Text(plain(text)) for text in told))


def sentences(recorded: StudyResults, advice: Advice) -> list[str]:
    """Return the advice, what it rests on, and what it does not say."""
    digits = decimals(recorded.facts, [advice.target])
    best, cheapest, stages = advice.best, advice.cheapest, Stages.of(recorded.facts)
    lines = [*_stuck(recorded, advice), _best(advice, stages, digits)]
    if control := CONTROLS.get(best.treatment):
        lines.append(_boost(advice, control, stages, digits))
    if cheapest != best:
        lead = f"{_long(cheapest, stages)}: {_behind(cheapest.behind, digits)}{_saved(cheapest)}"
        lines.append(f"Cheapest that cannot be told from it: {lead}.")
    elif advice.noise == "none":
        lines.append("Nothing says how far apart two choices must be to differ, so no cheaper one is named.")
    else:
        saved = f"; the best itself takes{_saved(best).removeprefix(',')}" if best.saves else ""
        lines.append(f"Nothing cheaper comes within the interval of its distance from the best{saved}.")
    if best.pretrained or cheapest.pretrained:
        lines.append(f"{NOT_COUNTED[0].upper()}{NOT_COUNTED[1:]}.")
    return [*lines, *_basis(recorded, advice)]


def _boost(advice: Advice, control: str, stages: Stages, digits: int) -> str:
    """Return the share of the other task, or of the pretrained weights, in a choice that is best."""
    boost, best = advice.boost, advice.best
    origin = "the pretrained weights" if best.pretrained else "the other task"
    selffer = "frozen selffer" if best.frozen else "fine-tuned selffer"
    if boost is None:
        return (
            f"Whether that is due to {origin} cannot be told: it has had more training than the base, and no {selffer} "
            f"was run at {stages.at(best.n)}."
        )
    compared = f"{best.treatment} {MINUS} {control} at {stages.at(best.n)} is {signed(boost, digits)} points"
    if boost.value <= 0 or is_within_noise(boost):
        return (
            f"That is no credit to {origin}: {compared}. The {selffer} has had as much training, all of it on "
            f"{advice.target}."
        )
    doubt = "" if boost.half is not None else ", though without an interval"
    left = f"{origin} are worth" if best.pretrained else f"{origin}'s {stages.word}s leave"
    return f"What {left} at equal training: {compared}{doubt}."


def _stuck(recorded: StudyResults, advice: Advice) -> list[str]:
    """Return a warning, to stand before anything else, where what is compared has learned nothing."""
    classes = class_count(recorded.facts, advice.target)
    several = len({result.seed for result in recorded.results}) > 1
    compared = [r for r in recorded.results if r.target == advice.target and r.treatment in (BASE, BASE_PLUS, *CHOICES)]
    names = [label(result, several) for result in compared if stuck(result, classes)]
    if not names:
        return []
    return [
        f"Stuck at chance for a good part of their training or all of it: {some(names)}. What is said of them or "
        "against them is about training that failed, not about transfer."
    ]


def _best(advice: Advice, stages: Stages, digits: int) -> str:
    best, top1 = advice.best, f"{per_cent(advice.best.top1.value, digits)} %"
    if best.difference is None:
        return f"Best on {advice.target}: training from scratch, {top1}; nothing that was copied did better."
    difference = best.difference
    text = (
        f"Best on {advice.target}: {_long(best, stages)}: {top1}, "
        f"{signed(difference, digits)} points from training from scratch"
    )
    scratch = next(choice for choice in advice.choices if choice.treatment == BASE).behind
    if scratch.half is not None and scratch.value <= scratch.half:
        text += ", which may be chance"
    longer = next((choice for choice in advice.choices if choice.treatment == BASE_PLUS), None)
    if longer is not None and longer.difference is not None and best != longer:
        text += f", against {signed(longer.difference, digits)} for training from scratch twice as long (base+)"
    return f"{text}."


def _basis(recorded: StudyResults, advice: Advice) -> list[str]:
    """Return sentences on the origin of the intervals."""
    unit = recorded.facts.get("seeds_are", "seeds")
    if advice.noise == "none":
        return ["The runs and what is recorded of the validation images give no intervals."]
    if advice.noise == "images":
        images = recorded.facts["val_pictures"][advice.target]
        return [
            f"One {unit.removesuffix('s')}, so no interval over {unit}. ± is what {images:,} validation images can "
            "tell apart (95 %), a lower bound: another seed may move each number further. More seeds would say."
        ]
    seeds = max(choice.top1.runs for choice in advice.choices)
    lines = [f"{intervals([choice.behind for choice in advice.choices if choice != advice.best], unit)}."]
    if any(choice.top1.runs < seeds for choice in advice.choices):
        lines.append(f"Not every choice was run with every {unit.removesuffix('s')}: see the runs.")
    return [*lines, "The best of many is partly the luckiest: expect a little less of it."]


def _long(choice: Choice, stages: Stages) -> str:
    if choice.treatment == BASE:
        return "training from scratch"
    if choice.treatment == BASE_PLUS:
        return "training from scratch, twice as long (base+)"
    origin = " of the pretrained weights" if choice.pretrained else ""
    then = f"freeze {'it' if choice.n == 1 else 'them'}" if choice.frozen else "train all"
    return f"copy {stages.first(choice.n)}{origin} and {then} ({choice.treatment}, n = {choice.n})"


def _short(choice: Choice) -> str:
    short = {BASE: "from scratch", BASE_PLUS: "twice as long"}
    return short.get(choice.treatment, f"{choice.treatment} n = {choice.n}")


def _behind(behind: Estimate, digits: int) -> str:
    text = f"{cost(behind, digits)} points behind"
    most = behind.value + (behind.half or 0)
    return f"{text}, so that it may cost up to {per_cent(most, digits)}" if most >= CHEAP else text


def _saved(choice: Choice) -> str:
    if not choice.saves:
        return ""
    if choice.saves < 0:
        return f", {-100 * choice.saves:.0f} % more multiply-adds"
    text = f", {100 * choice.saves:.0f} % fewer multiply-adds per training step"
    if choice.faster is not None:
        text += f" (measured: {choice.faster:.1f} times the images per second)"
    return text
