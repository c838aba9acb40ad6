"""The README's section about speed is what the committed numbers say."""

from __future__ import annotations

import measured
import pytest

from fasttransfer.bench import readme, targets
from fasttransfer.bench.readings import read


def test_the_readme_says_what_was_measured() -> None:
    result = read(targets.RESULTS / "bench-all.json")
    text = readme.README.read_text()
    assert readme.updated(text, readme.section(result)) == text, "run python bench/readme.py"


def test_other_numbers_would_be_noticed() -> None:
    result = measured.result()
    said = readme.section(result)
    assert "| fasttransfer, bf16 | 128 | 1 |" in said and "take 10 ms where PyTorch takes 150" in said
    result["parts"]["step"]["caffenet"]["seconds"]["eager fp32"] = measured.timing(2.7)
    assert readme.section(result) != said


@pytest.mark.parametrize("part", ["kernels", "step", "cells", "data", "features", "ablation"])
def test_every_claim_has_its_command(part: str) -> None:
    """Without a part, nothing is said of it."""
    result = measured.result()
    assert f"fasttransfer bench {part}" in readme.section(result)
    del result["parts"][part]
    said = readme.section(result).split("```")[2]
    assert f"fasttransfer bench {part}" not in said


def test_lines_fit() -> None:
    tables = [line for line in readme.section(measured.result()).splitlines() if not line.startswith("|")]
    assert max(map(len, tables)) <= 120
