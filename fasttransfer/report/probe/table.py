"""The table of a probe for the terminal: cuts down, examples of each class across."""

from __future__ import annotations

from collections import Counter

import torch
from rich.console import Group, RenderableType
from rich.text import Text

from fasttransfer.probe.examples import BATCH, FOLDS, MANY, STEPS
from fasttransfer.probe.heads import MOMENTUM
from fasttransfer.probe.sweep import ProbeResults, choose_head
from fasttransfer.report.numbers import count, half, per_cent, plain
from fasttransfer.report.probe.beside import StudyReference
from fasttransfer.report.table import grid


def table(probed: ProbeResults, beside: StudyReference) -> RenderableType:
    """Return a table for rich: top-1 in per cent with its interval over seeds, below it the usual rate and decay."""
    asked, swept = probed.request, probed.settings
    digits = 0 if len(asked.images["val"]) < 200 else 1
    heads = [*(examples_title(probed, k) for k in swept.examples), *(["study"] if beside.frozen else [])]
    cuts = grid([], ["cut", *heads], padding=(0, 0, 0, 0))
    for cut in swept.cuts:
        found = [probed.top1(cut, k) for k in swept.examples]
        tops = [per_cent(mean.value, digits) + (half(mean, digits) if mean.half else "") for mean in found]
        pairs = [usual(probed, cut, k) for k in swept.examples]
        others = [beside.frozen.get(cut)] if beside.frozen else []
        cuts.add_row(str(cut), *tops, *(per_cent(each[1], digits) if each else "-" for each in others))
        cuts.add_row("", *pairs, *(each[0] if each else "" for each in others), style="dim")
    head = Text(
        f"Softmax regressions on features of {asked.cell.label}: top-1 on {len(asked.images['val']):,} validation "
        f"images of {asked.task}, by training images per class; chance {per_cent(1 / len(asked.classes), digits)} %"
    )
    first = [Text(plain(beside.verdict))] if beside.verdict else []
    return Group(*first, head, cuts, Text("\n".join(rules(probed, beside))))


def examples_title(probed: ProbeResults, k: int | None) -> str:
    """Return the heading of `k` examples of each class; for None, all, with their mean number."""
    return str(k) if k is not None else f"all ({probed.examples[None]:.0f})"


def usual(probed: ProbeResults, cut: int, k: int | None) -> str:
    """Return the learning rate and decay that most seeds chose."""
    (rate, decay), _ = Counter((head.rate, head.decay) for head in probed.chosen(cut, k)).most_common(1)[0]
    return f"{rate:g}, {short(decay)}"


def short(number: float) -> str:
    """Return a number in few characters: 0.0001 -> "1e-4"."""
    return (f"{number:.0e}" if 0 < number < 0.01 and float(f"{number:.0e}") == number else f"{number:g}").replace(
        "e-0", "e-"
    )


def rules(probed: ProbeResults, beside: StudyReference) -> list[str]:
    """Return sentences on how the numbers came about."""
    swept = probed.settings
    seeds = count(len(swept.seeds), "seed")
    interval = ", ± half the 95 % interval over seeds" if len(swept.seeds) > 1 else "; one seed: no interval"
    lines = [
        f"Mean over {seeds}{interval}: other examples, other batches, the same network and validation images.",
        f"Below: learning rate and decay chosen most often, for each seed among {count(len(swept.pairs), 'head')} by "
        f"top-1 on held-out training examples: each of up to {FOLDS} parts left out once, from {MANY} per class on one "
        "of them.",
        "Validation images choose nothing.",
    ]
    if 1 in swept.examples:
        rate, decay = swept.pairs[choose_head(swept.pairs, None, None)]
        lines.append(f"Of 1 example none can be held out: the middle of the lists, {rate:g} and {short(decay)}.")
    precision = "bfloat16" if probed.dtype == torch.bfloat16 else "float32"
    lines.append(
        f"{STEPS} steps of momentum {MOMENTUM:g}, batches of {BATCH} or more, {precision}; features centred and "
        "brought to length 1 by the examples learned from."
    )
    if beside.frozen:
        lines.append("study: the study's own network with these layers frozen, the others trained on all images.")
    if beside.synthetic:
        lines.append("The images are synthetic.")
    return lines
