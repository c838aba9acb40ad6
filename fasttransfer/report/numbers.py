"""How scores are written: per cent and points, with no more digits than the validation pictures support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fasttransfer.analysis import Estimate
from fasttransfer.records import Result

MINUS = "\N{MINUS SIGN}"


def decimals(facts: Mapping[str, Any], targets: Sequence[str]) -> int:
    """Digits after the point: one, or none where one validation picture is worth more than half a point."""
    pictures = facts.get("val_pictures", {})
    counts = [pictures[target] for target in targets if pictures.get(target)]
    return 0 if counts and min(counts) < 200 else 1


def per_cent(value: float, digits: int = 1) -> str:
    """0.6234 -> "62.3", without the sign."""
    return f"{100 * value:.{digits}f}"


def points(value: float, digits: int = 1) -> str:
    """A difference of two scores: -0.0253 -> "−2.5" (true minus sign), 0.0031 -> "+0.3", 0.0001 -> "0.0"."""
    text = f"{100 * value:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", MINUS)


def cost(estimate: Estimate, digits: int = 1) -> str:
    """A loss or a gain as a bare amount, with its interval where there is one: "8.3 ± 0.4"."""
    amount = f"{100 * estimate.value:.{digits}f}"
    if float(amount) == 0:
        amount = amount.removeprefix("-")
    return amount.replace("-", MINUS) + half(estimate, digits)


def half(estimate: Estimate, digits: int = 1) -> str:
    """The interval behind a number, " ± 0.4"; nothing where there is none."""
    return "" if estimate.half is None else f" ± {100 * estimate.half:.{digits}f}"


def count(number: int, what: str) -> str:
    """A number and its noun: "1 seed", "3 seeds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """The first eight names, and how many there are beside them."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def label(result: Result, several_seeds: bool) -> str:
    """The paper's name of a network, with its seed where the study has several."""
    return f"{result.name} (seed {result.seed})" if several_seeds else result.name
