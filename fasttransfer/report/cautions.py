"""The cautions of a study: what failed, is missing or confounded, and which numbers are of single runs."""

from __future__ import annotations

from fasttransfer.pipelines.views import UNLIMITED, describe_views
from fasttransfer.report.analysis import Summary
from fasttransfer.report.findings import warnings
from fasttransfer.report.numbers import count, label, some
from fasttransfer.study.records import StudyResults


def cautions(recorded: StudyResults, summary: Summary) -> list[str]:
    """Return sentences, the gravest first."""
    several = len(summary.seeds) > 1
    sentences = []
    failed: dict[tuple[str, bool, str], list[str]] = {}
    for result in recorded.results:
        if result.state in ("diverged", "skipped"):
            what = "Diverged" if result.state == "diverged" else "Not trained"
            failed.setdefault((what, bool(result.evaluations), result.reason), []).append(label(result, several))
    for (what, is_drawn, reason), names in failed.items():
        why = f" ({'each: ' if len(names) > 1 else ''}{reason})" if reason else ""
        cross = ", drawn as a cross" if is_drawn else ""
        sentences.append(f"{what}, left out of every mean{cross}: {some(names)}{why}.")
    if waiting := [label(result, several) for result in recorded.results if result.waiting]:
        sentences.append(f"Unfinished, not counted in any mean: {some(waiting)}.")
    sentences += warnings(recorded, summary.score)
    if not several and any(row.top1 for row in summary.rows):
        sentences.append(_one_seed(summary))
    if (views := describe_views(recorded.study)) != UNLIMITED:
        sentences.append(f"Views limited to {views}: an approximation of the paper's unlimited random crops.")
    if recorded.facts.get("held_out"):
        sentences.append("The source has no validation images: they were cut from its training images.")
    if refused := recorded.facts.get("refused"):
        sentences.append(f"{count(refused, 'image')} could not be decoded and took no part.")
    return sentences


def _one_seed(summary: Summary) -> str:
    single = "One seed: every number rests on a single run for each task"
    if any(mean.half is not None for row in summary.rows for mean in row.difference.values()):
        return (
            f"{single}. ± is what the validation images alone can tell, a lower bound: another seed may move a number "
            "further. More seeds say how far."
        )
    return f"{single} and has no interval: small differences may be chance. More seeds give intervals."
