"""The effect of dropout on the cost of freezing: two studies that differ in nothing else, paired.

    python -m bench.studies tiny-dropout-0 --data tiny-imagenet-200 --out ZERO
    python -m bench.studies tiny-dropout-0.5 --data tiny-imagenet-200 --out HALF
    python -m bench.dropout ZERO HALF

Networks of the same name and seed start from the same values and see the same batches. So the second study's score
minus the first's is taken network by network, and these differences are summarised as scores are: noise that both
have in common cancels. Writes bench/results/dropout.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.studies import pair, write_result
from fasttransfer.core.errors import InputError
from fasttransfer.report.analysis.effects import FREEZING
from fasttransfer.report.analysis.summary import summarise
from fasttransfer.report.verdict import verdict
from fasttransfer.study import records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path, help="a study's folder")
    parser.add_argument("other", type=Path, help="the same study with another dropout")
    chosen = parser.parse_args()
    studies = [records.read_results(chosen.one), records.read_results(chosen.other)]
    write_result(
        "dropout",
        "python -m bench.dropout ZERO HALF",
        dropout=[study.study["recipe"]["dropout"] for study in studies],
        verdicts=[told.text if (told := verdict(study)) else None for study in studies],
        freezing=[_freezing(study.results, study.facts) for study in studies],
        gain=[pair(summarise(study.results, facts=study.facts).gain) for study in studies],
        freezing_of_second_minus_first=_freezing(_paired(*studies)),
    )


def _paired(one: records.StudyResults, other: records.StudyResults) -> list[records.Result]:
    """Return the networks of `other`, their last check's top-1 less that of the same network of `one`."""
    before = {(result.name, result.seed): result.last_top1 for result in one.results}
    if before.keys() != {(result.name, result.seed) for result in other.results}:
        raise InputError(f"{one.folder} and {other.folder} have other networks: they cannot be paired")
    found = []
    for result in other.results:
        top1, last = before[result.name, result.seed], result.last_top1
        if top1 is None or last is None:
            raise InputError(f"{result.name} of seed {result.seed} is not finished in both studies")
        checks = (*result.evaluations[:-1], replace(result.evaluations[-1], val_top1=last - top1))
        found.append(replace(result, evaluations=checks, correct=None))
    return found


def _freezing(
    results: Sequence[records.Result], facts: Mapping[str, Any] | None = None
) -> dict[int, list[float | None] | None]:
    return {row.n: pair(row[FREEZING]) for row in summarise(results, facts=facts).rows}


if __name__ == "__main__":
    main()
