"""The README's table of speeds says what the committed results say."""

from __future__ import annotations

import copy

from bench import readme


def test_the_readme_says_what_was_measured() -> None:
    text = readme.README.read_text()
    written = readme.table({name: readme.load(name) for name in readme.MACHINES})
    assert readme.updated(text, written) == text, "run python -m bench.readme"


def test_other_numbers_would_be_noticed() -> None:
    results = {name: readme.load(name) for name in readme.MACHINES}
    written = readme.table(results)
    changed = copy.deepcopy(results)
    seconds = changed["avx512"]["step[caffenet]"]["extra_info"]["seconds"]
    seconds["eager fp32"] = [2 * each for each in seconds["eager fp32"]]
    assert readme.table(changed) != written


def test_the_fastest_data_loader_on_the_same_files_stands_beside_the_usual_one() -> None:
    results = copy.deepcopy(readme.load("avx512"))
    rows = [name for name in results if name.startswith("feed[feed-")]
    for name in rows:  # an older result, of JPEGs of side 256 alone
        seconds = results[name]["extra_info"]["seconds"]
        for way in ("as usual", "+ draft", "+ v2 resize", "+ arrays"):
            seconds.pop(f"DataLoader {way}", None)
    row = next(row for row in readme.table({"avx512": results}).splitlines() if "raw store, one core" in row)
    assert ": – / – / " in row and row.split(" | ")[2].endswith("x / –")
    for name in rows:
        seconds = results[name]["extra_info"]["seconds"]
        for way, times in (("as usual", 40), ("+ draft", 30), ("+ v2 resize", 20)):
            seconds[f"DataLoader {way}"] = [times * each for each in seconds["fasttransfer raw"]]
    row = next(row for row in readme.table({"avx512": results}).splitlines() if "raw store, one core" in row)
    assert ": 40.0x / 20.0x / " in row


def test_what_was_not_measured_is_left_open() -> None:
    results = readme.load("avx512")
    del results["cells"]
    rows = readme.table({"avx512": results}).splitlines()
    projected = next(row for row in rows if "projected" in row)
    assert projected.split(" | ")[2] == "–"
    assert "h200" not in readme.table({"avx512": results, "h200": {}})
