"""How scores are written: per cent and points, with no more digits than the validation images support."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fasttransfer.report.analysis import Estimate
from fasttransfer.study.records import Result

MINUS = "\N{MINUS SIGN}"


def decimals(facts: Mapping[str, Any], targets: Sequence[str]) -> int:
    """Digits after the point: one, or none where one validation image is worth more than half a point."""
    images = facts.get("val_pictures", {})
    counts = [images[target] for target in targets if images.get(target)]
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


def signed(estimate: Estimate, digits: int = 1) -> str:
    """A difference with its sign and its interval, where it has one: "+0.3 ± 0.8"."""
    return points(estimate.value, digits) + half(estimate, digits)


def cost(estimate: Estimate, digits: int = 1) -> str:
    """A loss or a gain as a bare amount, with its interval where there is one: "8.3 ± 0.4"."""
    amount = f"{100 * estimate.value:.{digits}f}"
    if float(amount) == 0:
        amount = amount.removeprefix("-")
    return amount.replace("-", MINUS) + half(estimate, digits)


def half(estimate: Estimate, digits: int = 1) -> str:
    """The interval behind a number, " ± 0.4"; nothing where there is none."""
    return "" if estimate.half is None else f" ± {100 * estimate.half:.{digits}f}"


def plain(text: str) -> str:
    """`text` for a terminal whose encoding may lack the minus sign and ±."""
    return text.replace(MINUS, "-").replace("±", "+-")


def is_within_noise(estimate: Estimate) -> bool:
    """Whether zero lies within the interval; False where there is no interval to judge by."""
    return estimate.half is not None and abs(estimate.value) <= estimate.half


def intervals(estimates: Iterable[Estimate], unit: str = "seeds") -> str:
    """A clause that says what the ± of `estimates` is made of; empty where none has an interval.

    Args:
        estimates: the numbers that it stands beside.
        unit: what the seeds of the study are called, in the plural.
    """
    known = [estimate for estimate in estimates if estimate.half is not None]
    told = []
    for kind in ("seeds", "pooled", "images"):
        seeds = sorted({estimate.seeds for estimate in known if estimate.kind == kind})
        if not seeds:
            continue
        over = f"{seeds[0]} to {seeds[-1]} {unit}" if len(seeds) > 1 else count(seeds[0], unit.removesuffix("s"))
        told.append(
            {
                "seeds": f"a 95 % interval over {over}",
                "pooled": f"a 95 % interval, the noise pooled over the study's cells ({over})",
                "images": f"what the validation images alone can tell ({over}), a lower bound",
            }[kind]
        )
    return f"± is {', of other numbers '.join(told)}" if told else ""


def count(number: int, what: str) -> str:
    """A number and its noun: "1 seed", "3 seeds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """The first eight names, and how many there are beside them."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def label(result: Result, several_seeds: bool) -> str:
    """The paper's name of a network, with its seed where the study has several."""
    return f"{result.name} (seed {result.seed})" if several_seeds else result.name
