"""The text of numbers: scores in per cent, differences in points, with as many digits as the images support."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fasttransfer.core.intervals import Estimate
from fasttransfer.report.analysis.effects import Effect
from fasttransfer.study.chance import class_count
from fasttransfer.study.records import Result, StudyResults

MINUS = "\N{MINUS SIGN}"


def decimals(facts: Mapping[str, Any], targets: Sequence[str]) -> int:
    """Return the digits after the point: one, or none where a validation image is worth more than half a point."""
    images = facts.get("val_pictures", {})
    counts = [images[target] for target in targets if images.get(target)]
    return 0 if counts and min(counts) < 200 else 1


def per_cent(value: float, digits: int = 1) -> str:
    """Return a score in per cent, without the sign: 0.6234 -> "62.3"."""
    return f"{100 * value:.{digits}f}"


def points(value: float, digits: int = 1) -> str:
    """Return a difference in points: -0.0253 -> "−2.5" (true minus sign), 0.0031 -> "+0.3", 0.0001 -> "0.0"."""
    text = f"{100 * value:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", MINUS)


def signed(estimate: Estimate, digits: int = 1) -> str:
    """Return a difference with its sign and, where it has one, its interval: "+0.3 ± 0.8"."""
    return points(estimate.value, digits) + half(estimate, digits)


def cost(estimate: Estimate, digits: int = 1) -> str:
    """Return a loss or a distance as a bare amount, with its interval where there is one: "8.3 ± 0.4"."""
    return points(estimate.value, digits).removeprefix("+") + half(estimate, digits)


def amount(effect: Effect, estimate: Estimate | None, digits: int = 1) -> str:
    """Return an estimate of `effect`, a gain with its sign and a cost without; a dash where there is none."""
    if estimate is None:
        return "–"
    return signed(estimate, digits) if effect.is_gain else cost(estimate, digits)


def networks(effect: Effect) -> str:
    """Return the networks that `effect` compares, with a true minus sign."""
    return effect.networks.replace(" - ", f" {MINUS} ")


def half(estimate: Estimate, digits: int = 1) -> str:
    """Return the interval to stand behind a number, " ± 0.4"; nothing where there is none."""
    return "" if estimate.half is None else f" ± {100 * estimate.half:.{digits}f}"


def plain(text: str) -> str:
    """Return `text` for a terminal whose encoding may lack the minus sign, the dash and ±."""
    return text.replace(MINUS, "-").replace("–", "-").replace("±", "+-")


def is_within_noise(estimate: Estimate) -> bool:
    """Return whether zero lies within the interval; False where there is no interval to judge by."""
    return estimate.half is not None and abs(estimate.value) <= estimate.half


def intervals(estimates: Iterable[Estimate], unit: str = "seeds") -> str:
    """Return a clause that explains the ± of `estimates`; empty where none has an interval.

    Args:
        estimates: the numbers that the clause is printed with.
        unit: the study's word for its seeds, in the plural.
    """
    clauses = {
        "seeds": "a 95 % interval over {}",
        "pooled": "a 95 % interval, the noise pooled over the study's cells ({})",
        "images": "what the validation images alone can tell ({}), a lower bound",
    }
    known = {(e.kind, e.seeds) for e in estimates if e.half is not None}
    over = {kind: sorted(seeds for one, seeds in known if one == kind) for kind in clauses}
    parts = [clauses[kind].format(_range(seeds, unit)) for kind, seeds in over.items() if seeds]
    return f"± is {', of other numbers '.join(parts)}" if parts else ""


def _range(seeds: Sequence[int], unit: str) -> str:
    return f"{seeds[0]} to {seeds[-1]} {unit}" if len(seeds) > 1 else count(seeds[0], unit.removesuffix("s"))


def thousands(value: float) -> str:
    """Return a count for an axis: 450,000 -> "450k"."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def count(number: int, what: str) -> str:
    """Return a number and its noun: "1 seed", "3 seeds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """Return the first eight names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def label(result: Result, several_seeds: bool) -> str:
    """Return the paper's name of a network, with its seed where the study has several."""
    return f"{result.name} (seed {result.seed})" if several_seeds else result.name


def task_title(recorded: StudyResults, target: str) -> str:
    """Return the name of a task and the number of its classes, where that is recorded."""
    classes = class_count(recorded.facts, target)
    return f"Task {target}" + (f", {classes} classes" if classes else "")
