"""What a reader has to know before believing the numbers: what failed, is missing or confounded, single runs."""

from __future__ import annotations

from fasttransfer.pipelines.views import UNLIMITED, describe_views
from fasttransfer.report.analysis import Summary
from fasttransfer.report.findings import warnings
from fasttransfer.report.numbers import count, label, some
from fasttransfer.study.records import StudyResults


def cautions(recorded: StudyResults, summary: Summary) -> list[str]:
    """Sentences, the gravest first."""
    several = len(summary.seeds) > 1
    told = []
    failed: dict[tuple[str, bool, str], list[str]] = {}
    for result in recorded.results:
        if result.state in ("diverged", "skipped"):
            what = "Diverged" if result.state == "diverged" else "Not trained"
            failed.setdefault((what, bool(result.evaluations), result.reason), []).append(label(result, several))
    for (what, drawn, reason), names in failed.items():
        why = f" ({'each: ' if len(names) > 1 else ''}{reason})" if reason else ""
        cross = ", drawn as a cross" if drawn else ""
        told.append(f"{what}, left out of every mean{cross}: {some(names)}{why}.")
    if waiting := [result for result in recorded.results if result.waiting]:
        told.append(f"Unfinished, not counted in any mean: {some([label(result, several) for result in waiting])}.")
    told += warnings(recorded, summary.score)
    if not several and any(row.top1 for row in summary.rows):
        told.append(_one_seed(summary))
    if (views := describe_views(recorded.study)) != UNLIMITED:
        told.append(f"Views limited to {views}: an approximation of the paper's unlimited random crops.")
    if recorded.facts.get("held_out"):
        told.append("The source has no validation images: they were cut from its training images.")
    if refused := recorded.facts.get("refused"):
        told.append(f"{count(refused, 'image')} could not be decoded and took no part.")
    return told


def _one_seed(summary: Summary) -> str:
    found = [estimate for row in summary.rows for estimate in row.difference.values()]
    single = "One seed: every number rests on a single run for each task"
    if any(estimate.half is not None for estimate in found):
        return (
            f"{single}. ± is what the validation images alone can tell, a lower bound: another seed may move a number "
            "further. More seeds say how far."
        )
    return f"{single} and has no interval: small differences may be chance. More seeds give intervals."
