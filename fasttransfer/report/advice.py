"""Advice in words and as a table for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fasttransfer.analysis import Advice, Choice, Estimate, class_count, stuck
from fasttransfer.analysis.advice import CHOICES
from fasttransfer.records import Recorded
from fasttransfer.report.findings import CHEAP
from fasttransfer.report.numbers import MINUS, count, decimals, half, label, per_cent, points, some


def advice_table(recorded: Recorded, advice: Advice) -> RenderableType:
    """The choices, a line each, and below them the sentences; for rich, in 80 columns."""
    digits = decimals(recorded.facts, [advice.target])
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    grid.add_column(f"on {advice.target}", no_wrap=True)
    for heading in ("runs", "top-1, %", "- scratch", "behind best", "work saved"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("")
    for choice in advice.choices:
        best = choice == advice.best
        grid.add_row(
            _short(choice),
            str(choice.top1.runs),
            per_cent(choice.top1.value, digits),
            "" if choice.difference is None else _plain(_amount(choice.difference, digits)),
            "" if best else _plain(_amount(choice.behind, digits, signed=False)),
            "" if choice.saves is None else f"{100 * choice.saves:.0f} %",
            "best" if best else "cheapest" if choice == advice.cheapest else "",
        )
    told = sentences(recorded, advice)
    return Group(grid, *(Text(_plain(sentence)) for sentence in told))


def sentences(recorded: Recorded, advice: Advice) -> list[str]:
    """What to do, what that rests on, and what it does not say."""
    digits = decimals(recorded.facts, [advice.target])
    best, cheapest = advice.best, advice.cheapest
    told = [*_stuck(recorded, advice), _best(advice, digits)]
    if cheapest != best:
        lead = f"{_long(cheapest)}: {_behind(cheapest.behind, digits)}{_saved(cheapest)}"
        told.append(f"Cheapest that cannot be told from it: {lead}.")
    elif advice.noise == "none":
        told.append("Nothing says how far apart two choices must be to differ, so no cheaper one is named.")
    else:
        saved = f"; the best itself takes{_saved(best).removeprefix(',')}" if best.saves else ""
        told.append(f"Nothing cheaper comes within the interval of its distance from the best{saved}.")
    told += _basis(recorded, advice, digits)
    gained = advice.selffer
    if best.treatment == "transfer+" and best.difference and gained and gained.value >= best.difference.value:
        told.append(
            f"Its gain is no credit to the other task: the fine-tuned selffer, which only trains longer on "
            f"{advice.target} itself, gains {points(gained.value, digits)}{half(gained, digits)}. Longer training may "
            "do as well."
        )
    return told


def _stuck(recorded: Recorded, advice: Advice) -> list[str]:
    """A warning before anything else where what is compared has learned nothing."""
    classes = class_count(recorded.facts, advice.target)
    if classes is None:
        return []
    names = [
        label(result, len({r.seed for r in recorded.results}) > 1)
        for result in recorded.results
        if result.target == advice.target and result.treatment in ("base", *CHOICES) and stuck(result, classes)
    ]
    if not names:
        return []
    shown = some(names)
    return [
        f"Stuck at chance for a good part of their training or all of it: {shown}. What is said of them or against "
        "them is about training that failed, not about transfer."
    ]


def _best(advice: Advice, digits: int) -> str:
    best, top1 = advice.best, f"{per_cent(advice.best.top1.value, digits)} %"
    if best.difference is None:
        return f"Best on {advice.target}: training from scratch, {top1}; nothing that was copied did better."
    difference = best.difference
    text = (
        f"Best on {advice.target}: {_long(best)}: {top1}, "
        f"{points(difference.value, digits)}{half(difference, digits)} points from training from scratch"
    )
    scratch = next(choice for choice in advice.choices if choice.treatment == "base").behind
    if scratch.half is not None and scratch.value <= scratch.half:
        text += ", which may be chance"
    return f"{text}."


def _basis(recorded: Recorded, advice: Advice, digits: int) -> list[str]:
    """Where the intervals are from."""
    unit = recorded.facts.get("seeds_are", "seeds")
    if advice.noise == "none":
        return ["One seed, and the number of validation pictures is not recorded: no intervals."]
    if advice.noise == "validation":
        pictures = recorded.facts["val_pictures"][advice.target]
        return [
            f"One {unit.removesuffix('s')}, so no interval over {unit}. ± behind the best is what {pictures:,} "
            "validation pictures can tell apart, as if two networks erred on unrelated pictures (binomial, 95 %, the "
            "cautious side); another seed may move each number further. More seeds would say."
        ]
    seeds = max(choice.top1.runs for choice in advice.choices)
    told = [
        f"± is a 95 % interval over {count(seeds, unit.removesuffix('s'))}; behind the best, of the paired difference, "
        f"its noise pooled over {len(advice.choices)} choices."
    ]
    if any(choice.top1.runs < seeds for choice in advice.choices):
        told.append(f"Not every choice was run with every {unit.removesuffix('s')}: see the runs.")
    told.append("The best of many is partly the luckiest: expect a little less of it.")
    return told


def _long(choice: Choice) -> str:
    if choice.treatment == "base":
        return "training from scratch"
    layers, them = ("the first layer", "it") if choice.n == 1 else (f"the first {choice.n} layers", "them")
    then = f"freeze {them}" if choice.frozen else "train all"
    return f"copy {layers} and {then} ({choice.treatment}, n = {choice.n})"


def _short(choice: Choice) -> str:
    return "from scratch" if choice.treatment == "base" else f"{choice.treatment} n = {choice.n}"


def _behind(behind: Estimate, digits: int) -> str:
    text = f"{_amount(behind, digits, signed=False)} points behind"
    most = behind.value + (behind.half or 0)
    return f"{text}, so that it may cost up to {per_cent(most, digits)}" if most >= CHEAP else text


def _saved(choice: Choice) -> str:
    if not choice.saves:
        return ""
    text = f", {100 * choice.saves:.0f} % fewer multiply-adds a training step"
    if choice.faster is not None:
        text += f" (measured: {choice.faster:.1f} times the pictures a second)"
    return text


def _amount(value: Estimate, digits: int, *, signed: bool = True) -> str:
    number = points(value.value, digits)
    return (number if signed else number.removeprefix("+")) + half(value, digits)


def _plain(text: str) -> str:
    return text.replace(MINUS, "-").replace("±", "+-")
