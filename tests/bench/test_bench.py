"""What the benchmarks report: each case runs natively and plainly, and a file holds what was printed."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fasttransfer import cli
from fasttransfer.bench import command, kernels, timing, training
from fasttransfer.geometry import CAFFENET_MINI

CPU = torch.device("cpu")


def test_variants_are_timed_in_turn_and_slower_is_slower() -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> object:
        order.append(name)
        time.sleep(seconds)
        return None

    found = timing.compare(
        {"slow": lambda i: call("slow", 0.008), "fast": lambda i: call("fast", 0.002)}, CPU, rounds=3, sample=0.0
    )
    assert order == ["slow"] * 2 + ["fast"] * 2 + ["slow", "fast"] * 3
    for name, least in (("slow", 0.008), ("fast", 0.002)):
        assert least <= found[name].least <= found[name].median <= found[name].most < least + 0.1
        assert found[name].rounds == 3


def test_short_calls_are_repeated_and_numbered() -> None:
    numbers: list[int] = []
    timing.compare({"short": numbers.append}, CPU, rounds=2, sample=0.001)
    assert max(numbers) > 10
    assert numbers.count(0) == 4  # twice to warm up, then once a round


@pytest.mark.parametrize(
    "operator", ["augment", "conv_relu_pool_lrn", "dropout", "relu_pool", "relu_pool_lrn", "sgd_step"]
)
def test_every_operator_has_cases_that_run(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BATCH", 2)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    found = [case for case in kernels.cases() if case.operator == operator and case.dtype == torch.bfloat16]
    assert found
    for case in found:
        calls = case.variants(CPU)
        assert {"native", "eager"} <= set(calls)
        for call in calls.values():
            call(0)
            call(1)


def test_every_variant_of_the_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)
    calls = training.variants(CAFFENET_MINI, 2, CPU)
    for call in calls.values():
        call(0)
    spent = training.profile(calls["fasttransfer bf16"], CPU, steps=1)
    assert any("convolution" in operator for operator, _, _ in spent)
    assert [ms for _, ms, _ in spent] == sorted((ms for _, ms, _ in spent), reverse=True)


def test_the_file_holds_what_was_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BATCH", 2)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    console, out = Console(file=io.StringIO(), width=200), tmp_path / "kernels.json"
    command.run("kernels", quick=True, only="dropout", device="cpu", out=out, console=console)
    found = json.loads(out.read_text())
    assert found["command"] == "fasttransfer bench kernels --quick --only dropout"
    assert found["machine"]["torch"] == torch.__version__.split("+")[0]
    assert len(found["cases"]) == 4
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for label, case in found["cases"].items():
        assert label in printed
        assert set(case["seconds"]) == {"native", "eager", "compiled", "copy"}
        assert 0 < case["of_copy"] < 2
        assert all(0 < t["least"] <= t["median"] <= t["most"] for t in case["seconds"].values())


def test_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        assert cli.run(["bench", "kernels", "--device", "cuda"]) == 2
        assert "no CUDA device" in capsys.readouterr().err
    assert cli.run(["bench", "kernels", "--only", "no such case"]) == 2
    assert "no case" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert cli.run(["bench", "kernels", "--only", "dropout", "--out", str(tmp_path / "file/x.json")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
