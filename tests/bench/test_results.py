"""What is made of measurements: the page, comparisons, the projection, the guard; and a run of everything."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measured
import pytest
import sources
import torch
from html_reader import check_stands_alone
from rich.console import Console
from sources import encoded, noise

from fasttransfer import cli
from fasttransfer.bench import (
    ablation,
    ceilings,
    cells,
    check,
    command,
    features,
    grid,
    pages,
    parts,
    projection,
    readings,
    roofline,
    suite,
    targets,
)
from fasttransfer.core.errors import InputError
from fasttransfer.networks.geometry import CAFFENET_MINI
from fasttransfer.study.paper import IMAGES_PER_SECOND

CPU = torch.device("cpu")


def write(path: Path, result: dict[str, Any]) -> Path:
    path.write_text(json.dumps(result))
    return path


# -- the page -------------------------------------------------------------------------------------------------------


def test_every_number_has_its_command_and_a_gpu_that_was_not_measured_says_so(tmp_path: Path) -> None:
    result = measured.result()
    for path in pages.write_pages([result], tmp_path / "bench-all.json"):
        text = path.read_text()
        for part in result["parts"]:
            assert f"fasttransfer bench {part}" in text, part
        assert text.count(targets.NOT_YET) >= len(targets.TARGETS)
        assert "16.0x" in text and "2.60x / 1.40x / 90%" in text
    markdown = pages.markdown_page([result])
    goals = [line for line in markdown.splitlines() if line.startswith(("| CaffeNet", "| relu_pool_lrn forward"))]
    assert all(line.split(" | ")[5] == targets.NOT_YET for line in goals)
    assert len(goals) == 2


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = pages.html_page([measured.result()])
    assert "<svg" in html and "prefers-color-scheme: dark" in html
    check_stands_alone(html)


def test_a_gpu_result_fills_its_column() -> None:
    gpu = measured.result("cuda")
    gpu["machine"] = {**measured.MACHINE, "cuda": "13.0: a GPU"}
    lines = pages.markdown_page([measured.result(), gpu]).splitlines()
    row = next(line for line in lines if line.startswith("| CaffeNet training step")).split(" | ")
    assert row[3].startswith("2.60x") and row[5].startswith("2.60x")
    ideas = [
        line for line in pages.markdown_page([gpu]).splitlines() if line.startswith("| step: without split groups")
    ]
    assert "1.30x" in ideas[0]


def test_parts_that_are_missing_or_failed_are_left_out_and_said() -> None:
    result = measured.result()
    for part in ("ceilings", "cells", "data"):
        del result["parts"][part]
    result["parts"]["features"] = {"command": "fasttransfer bench features", "failed": "RuntimeError: no memory"}
    text = pages.markdown_page([result])
    assert "features failed: RuntimeError: no memory" in text
    assert "## Ceilings" not in text and "projected" not in text.split("## The training step")[1]


def test_results_of_single_parts_make_a_page_too(tmp_path: Path) -> None:
    whole = measured.result()
    files = []
    for name in ("kernels", "step"):
        part = whole["parts"][name]
        files.append(str(write(tmp_path / f"{name}.json", {**whole, **part, "parts": None})))
        found = json.loads(Path(files[-1]).read_text())
        del found["parts"]
        write(Path(files[-1]), found)
    assert cli.run(["bench", "page", *files, "--out", str(tmp_path / "page.json")]) == 0
    text = (tmp_path / "page.md").read_text()
    assert "## Operators" in text and "## The training step" in text and "## Cells\n" not in text
    assert "fasttransfer bench kernels; fasttransfer bench step" in text


def test_a_missed_goal_has_its_reason() -> None:
    result = measured.result()
    text = pages.markdown_page([result])
    assert "Missed: CaffeNet training step, bf16, 500 classes: 90% of the step are convolutions" in text
    result["parts"]["step"]["caffenet"]["seconds"]["fasttransfer bf16"] = measured.timing(0.95)
    assert "Missed: CaffeNet training step" not in pages.markdown_page([result])


def test_money_only_at_a_price_that_was_given(tmp_path: Path) -> None:
    path = write(tmp_path / "all.json", measured.result())
    assert "no --price given" in pages.markdown_page([measured.result()])
    assert cli.run(["bench", "page", str(path), "--price", "2.5"]) == 0
    text = path.with_suffix(".md").read_text()
    rates = projection.rates_of(measured.result()["parts"])
    assert rates is not None
    seconds = projection.project(projection.papers_networks(), rates).together
    assert f"{2.5 * seconds / 3600:,.0f}" in text and "at 2.5 an hour" in text


# -- the projection -------------------------------------------------------------------------------------------------


def test_the_papers_networks_are_all_there() -> None:
    cohorts = projection.papers_networks()
    assert sum(len(cohort.cells) for cohort in cohorts) == projection.NETWORKS
    assert sum(cohort.steps == 200_000 for cohort in cohorts) == 12
    together = [len(cohort.cells) for cohort in cohorts if len(cohort.cells) > 1]
    # 0A: 7 transfer, 7 selffer, 7 selffer+; 1A: 3 of the last; 0B and halves without fine-tuned networks: 14.
    assert sorted(together, reverse=True)[:3] == [21, 17, 14]


def test_the_papers_rates_give_the_papers_days() -> None:
    # At the K20's own rates, its networks alone take what they took: 1548 days were counted as 9.5 each.
    train = tuple(1 / rate for rate in IMAGES_PER_SECOND)
    rates = projection.CellTimes(train, (0.0,) * 9, 0.0)
    days = projection.project(projection.papers_networks(), rates).alone / 86400
    assert 900 < days < projection.K20_DAYS


def test_a_cohort_is_its_prefix_once_and_every_cell() -> None:
    cohort = next(c for c in projection.papers_networks() if len(c.cells) == 7)
    one = roofline.CohortWork(cohort.cells, 1000, steps=10, checks=2, val_images=100)
    rates = projection.CellTimes(tuple(1.0 + n for n in range(8)), tuple(0.1 * n for n in range(9)), 0.01)
    found = projection.project([one], rates)
    training = 10 * 256 * (0.01 + 0.7 + sum(1.0 + n for n in range(1, 8)))
    checking = 2 * 100 * (0.01 + 0.7 + sum(0.8 - 0.1 * n for n in range(1, 8)))
    assert found.together == pytest.approx(training + checking)
    assert found.alone > found.together


# -- comparing ------------------------------------------------------------------------------------------------------


def test_what_became_slower_is_named_and_the_exit_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = measured.result(), measured.result()
    case = new["parts"]["kernels"]["cases"][targets.POOLING]["seconds"]
    case["native"] = measured.timing(0.013)
    files = [str(write(tmp_path / f"{i}.json", result)) for i, result in enumerate((old, new))]
    assert cli.run(["bench", "compare", files[0], files[0]]) == 0
    capsys.readouterr()
    assert cli.run(["bench", "compare", *files]) == 1
    lines = capsys.readouterr().out.splitlines()
    slower = [line for line in lines if line.startswith("SLOWER")]
    assert any("native, seconds" in line for line in slower) and any("eager / native" in line for line in slower)
    assert not any("step" in line for line in slower)
    assert cli.run(["bench", "compare", *reversed(files)]) == 0


def test_of_another_machine_only_ratios_count() -> None:
    old, new = measured.result(), copy.deepcopy(measured.result())
    new["machine"] = {**measured.MACHINE, "processor": "Another"}
    for timing in new["parts"]["step"]["caffenet"]["seconds"].values():
        for key in ("median", "least", "most"):
            timing[key] *= 3
        timing["samples"] = [3 * sample for sample in timing["samples"]]
    changes = readings.compare(old, new)
    assert all(change.ratio for change in changes) and not any(change.worse for change in changes)
    assert any(change.worse for change in readings.compare(old, {**new, "machine": old["machine"]}))


def test_a_change_within_the_samples_is_none() -> None:
    old, new = measured.result(), measured.result()
    seconds = {"native": measured.timing(0.010, 0.15), "eager": measured.timing(0.15, 0.15)}
    old["parts"]["kernels"]["cases"] = {"x": {"seconds": seconds}}
    new["parts"]["kernels"]["cases"] = {"x": {"seconds": {**seconds, "native": measured.timing(0.012, 0.15)}}}
    assert not any(change.worse for change in readings.compare(old, new) if " / x" in change.name and not change.ratio)
    # A common load moves both and no ratio of rounds.
    assert readings.ratios(measured.timing(0.2, 0.5), measured.timing(0.1, 0.5)) == pytest.approx([2.0] * 5)


def test_files_that_are_no_results_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(write(tmp_path / "good.json", measured.result()))
    (tmp_path / "text").write_text("no JSON")
    for bad in (tmp_path / "none.json", tmp_path / "text", write(tmp_path / "list.json", {"a": 1})):
        assert cli.run(["bench", "compare", good, str(bad)]) == 2
        assert str(bad) in capsys.readouterr().err
    part = write(tmp_path / "part.json", {"command": "fasttransfer bench step", "machine": {}, "device": "cpu"})
    assert cli.run(["bench", "page"]) == 2
    assert "name at least one JSON file" in capsys.readouterr().err
    assert cli.run(["bench", "compare", good, str(part)]) == 2
    assert "no case in common" in capsys.readouterr().err
    assert cli.run(["bench", "all", "--quick", "--full"]) == 2
    assert cli.run(["bench", "page", good, "--price", "0"]) == 2


# -- the guard ------------------------------------------------------------------------------------------------------


def guarded(*found: float) -> tuple[dict[str, Any], Callable[[str], None], list[str]]:
    lines: list[str] = []
    recorded = {"ratios": {"case": {"median": 10.0, "least": 9.5, "most": 10.5}}}
    return recorded, lines.append, lines


@pytest.mark.parametrize(
    ("tries", "fails"), [([9.0], False), ([7.4, 8.0], False), ([5.0, 6.0, 7.9], False), ([5.0, 6.0, 7.5], True)]
)
def test_a_ratio_fails_when_it_is_smaller_three_times(
    tries: list[float], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 9.5, the least recorded, less a fifth: 7.6.
    left = iter(tries)
    monkeypatch.setattr(check, "measure", lambda make: next(left))
    recorded, log, lines = guarded()
    made = {"case": lambda: (lambda i: None, lambda i: None)}
    assert check.check(recorded, made, verdict=True, log=log) == ["case"] * fails
    assert list(left) == [] and ("SLOWER" in lines[0]) == fails


def test_elsewhere_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "measure", lambda make: 1.0)
    recorded, log, lines = guarded()
    assert check.check(recorded, {"case": lambda: (lambda i: None, lambda i: None)}, verdict=False, log=log) == []
    assert len(lines) == 1


def test_a_case_is_what_pytorch_takes_by_what_we_take(tmp_path: Path) -> None:
    def make() -> tuple[Callable[[int], object], Callable[[int], object]]:
        x = torch.randn(200_000)
        return lambda i: [x.sin() for _ in range(8)], lambda i: x.sin()

    assert 3 < check.measure(make) < 24  # eight, on a machine that does nothing else
    check.record(2, tmp_path / "check.json", {"sine": make})
    recorded = json.loads((tmp_path / "check.json").read_text())["ratios"]["sine"]
    assert recorded["least"] <= recorded["median"] <= recorded["most"] and len(recorded["runs"]) == 2


def test_a_wide_spread_allows_more() -> None:
    assert check.floor({"least": 9.0, "median": 10.0, "most": 10.0}) == pytest.approx(7.2)
    assert check.floor({"least": 8.0, "median": 10.0, "most": 12.0}) == pytest.approx(4.8)


# -- measuring ------------------------------------------------------------------------------------------------------


def test_a_run_of_everything_survives_a_part_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, states = tmp_path / "bench" / "all.json", []

    def good(size: command.Size, only: str, device: torch.device, console: Console) -> Iterator[dict[str, Any]]:
        yield {"first": 1}
        states.append(json.loads(out.read_text())["parts"]["good"])
        yield {"second": 2}

    def bad(size: command.Size, only: str, device: torch.device, console: Console) -> Iterator[dict[str, Any]]:
        yield {"before": 1}
        raise RuntimeError("out of luck")

    monkeypatch.setattr(command, "measures", lambda asked, *limits: {"bad": bad, "good": good})
    console = Console(file=io.StringIO())
    assert not suite.run(quick=True, device="cpu", out=out, console=console, price=1.5)
    found = json.loads(out.read_text())
    assert found["command"] == "fasttransfer bench all --quick --price 1.5" and found["price"] == 1.5
    assert found["parts"]["bad"]["failed"] == "RuntimeError: out of luck" and found["parts"]["bad"]["before"] == 1
    assert states == [{"command": "fasttransfer bench good --quick", "first": 1}]
    assert found["parts"]["good"]["second"] == 2 and found["parts"]["good"]["took"] >= 0
    assert "out of luck" in out.with_suffix(".html").read_text()


def test_images_without_a_validation_part_are_decoded_and_the_study_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measures(asked: grid.GridBenchmark, *limits: object) -> dict[str, command.Measure]:
        return {part: lambda *_: iter([{"source": str(asked.source)}]) for part in ("data", "grid")}

    monkeypatch.setattr(command, "measures", measures)
    out = tmp_path / "all.json"
    assert suite.run(quick=True, device="cpu", out=out, console=Console(file=io.StringIO()), source=tmp_path / "some")
    found = json.loads(out.read_text())["parts"]
    assert {part: piece["source"] for part, piece in found.items()} == {"data": str(tmp_path / "some"), "grid": "None"}
    assert found["grid"]["command"] == "fasttransfer bench grid --quick"


def test_bad_input_of_a_part_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> Iterator[dict[str, Any]]:
        raise InputError("no images there")
        yield

    monkeypatch.setattr(command, "measures", lambda *_: {"data": refused})
    console = Console(file=io.StringIO())
    assert not suite.run(quick=True, device="cpu", out=tmp_path / "all.json", console=console)
    assert "no images there" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "Traceback" not in capsys.readouterr().err


def test_cells_features_and_ideas_are_measured_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)
    monkeypatch.setattr(parts, "CAFFENET", CAFFENET_MINI)
    monkeypatch.setattr(features, "RECORDS", 2 * features.BLOCK)
    console = Console(file=io.StringIO(), width=200)
    images = sources.write(tmp_path, {f"{name}/0.jpg": encoded(noise(0, width=80, height=90)) for name in "ab"})
    size, result = command.Size(1, 4, 8, 0, 0.0), measured.result()
    for name, measure in (
        ("cells", parts.cells_of),
        ("features", parts.features_of),
        ("ablation", functools.partial(parts.ablation_of, source=images)),
    ):
        found: dict[str, Any] = {"command": f"fasttransfer bench {name}"}
        for piece in measure(size, "", CPU, console):
            found |= json.loads(json.dumps(piece))
        result["parts"][name] = found
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    text = pages.markdown_page([result])
    for idea in (idea for ideas in ablation.IDEAS.values() for idea in ideas):
        assert idea.name in printed and f"without {idea.name}" in text
    rates = projection.rates_of(result["parts"])
    assert rates is not None and 0 < rates.forward[1] < 1
    assert abs(result["parts"]["features"]["of_dense"] - 1 / 16 - result["parts"]["features"]["not_zero"]) < 0.01


def test_a_cell_from_the_cache_is_timed_beside_the_same_live(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=200)
    before = os.environ["FASTTRANSFER_CACHE"], torch.get_num_threads()
    found: dict[str, Any] = {"command": "fasttransfer bench cached"}
    for piece in parts.cached_of(command.Size(1, 2, 8, 0, 0.0), "n = 7", CPU, console, layers=(5, 7)):
        found |= json.loads(json.dumps(piece))
    assert (os.environ["FASTTRANSFER_CACHE"], torch.get_num_threads()) == before
    assert found["study"]["batch"] == 4 and found["filling"]["records"] == 2 * 8 + 8
    assert set(found["filling"]["cuts"]) == set("123456")
    step = found["n"]["7"]
    assert set(found["n"]) == {"7"} and set(step["seconds"]) == {"live", "cached"}
    assert step["ratio"] == pytest.approx(step["cached"] / step["live"], rel=0.01)
    assert step["ratio"] > 2  # 29 by the arithmetic
    result = measured.result()
    result["parts"]["cached"] = found
    assert f"{step['ratio']:.1f}x" in pages.markdown_page([result])


@pytest.mark.parametrize("group", ablation.IDEAS)
def test_every_idea_can_be_taken_away(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)
    blobs = [encoded(noise(seed, width=80, height=90)) for seed in range(2)]
    calls = ablation.variants(group, 2, CPU, blobs, 1, CAFFENET_MINI)
    assert {name for name in calls if name not in (ablation.WHOLE, ablation.COMPILED)} == {
        idea.name for idea in ablation.IDEAS[group] if not idea.gpu_only
    }
    for call in calls.values():
        call(0)


def test_without_an_idea_it_is_the_same_network() -> None:
    """Logits and updated weights, as far as bfloat16 agrees with itself in another order."""
    from fasttransfer.bench import training

    x = training.random_images(CAFFENET_MINI, 4, "bf16", CPU)
    with torch.no_grad():
        whole = training.trainee_of(CAFFENET_MINI, "bf16", CPU).net(x)
        for kind in (ablation._Composite, ablation._Planes, ablation._Grouped):
            net = training.trainee_of(CAFFENET_MINI, "bf16", CPU, change=lambda n, k=kind: ablation._exchange(n, k)).net
            torch.testing.assert_close(net(x), whole, rtol=0.1, atol=0.02 * float(whole.abs().max()))
    after = []
    for kind in (training.StageTrainer, ablation._PlainUpdate):
        torch.manual_seed(0)
        trainee = training.trainee_of(CAFFENET_MINI, "bf16", CPU, kind=kind)
        training.stepping(trainee, x, recorded=False)(0)
        after.append(trainee.weights["fc8.weight"])
    torch.testing.assert_close(*after, rtol=1e-3, atol=1e-5)


def test_cells_start_at_every_cut() -> None:
    calls = cells.calls(2, "fp32", CPU, CAFFENET_MINI)
    names = [cells.TRAIN.format(n) for n in range(8)] + [cells.FORWARD.format(n) for n in range(1, 9)]
    assert list(calls) == names
    for call in calls.values():
        call(0)
    count, call = cells.whole_cohort(2, "fp32", CPU, CAFFENET_MINI)
    call(0)
    assert count == 37


def test_ceilings_do_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COPIED", 1 << 20), ("SIDE", 64), ("BATCH", 1)):
        monkeypatch.setattr(ceilings, name, {"cpu": value})
    made = ceilings.ceilings(CPU, [encoded(noise(0))], 1)
    assert made["matrices, bf16"].work == 2 * 64**3
    # The five convolutions of a forward pass: 1.449 GFLOP less 117 million in the layers behind.
    assert made["convolutions, fp32"].work / 1e9 == pytest.approx(1.3316, abs=0.0005)
    found = ceilings.measure(made, CPU, 1, sample=0.0)
    assert all(timing.median > 0 for timing in found.values())
    assert {"decoding, Pillow", "decoding, torchvision"} <= set(made)
