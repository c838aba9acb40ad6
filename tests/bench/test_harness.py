"""The harness: variants in turn, tables, the guard on ratios, and `fasttransfer bench` as a user meets it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sources import encoded, noise, write

from fasttransfer import cli
from fasttransfer.bench import harness

CPU = torch.device("cpu")


@dataclass
class Clock:
    """Replaces the module `time`; the test moves it on."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(harness, "time", clock)
    return clock


def test_every_round_times_every_variant_once(clock: Clock) -> None:
    order: list[str] = []

    def call(name: str, *seconds: float) -> None:
        """Take the first of `seconds` at the first call after the two warm-up calls, and so on."""
        order.append(name)
        clock.now += seconds[max(0, order.count(name) - 3)]

    calls = {"slow": lambda i: call("slow", 8.0, 16.0, 9.0), "fast": lambda i: call("fast", 2.0, 2.0, 3.0)}
    samples = harness.Rounds(calls, CPU, sample=0.0).run(3)
    assert order == ["slow"] * 2 + ["fast"] * 2 + ["slow", "fast"] * 3
    assert samples == {"slow": [8.0, 16.0, 9.0], "fast": [2.0, 2.0, 3.0]}
    assert harness.ratio(samples, "fast") == pytest.approx(0.25)  # the middle one of 1/4, 1/8, 1/3


def test_short_calls_are_repeated_and_numbered(clock: Clock) -> None:
    numbers: list[int] = []

    def short(i: int) -> None:
        numbers.append(i)
        clock.now += 0.0625

    samples = harness.Rounds({"short": short}, CPU, sample=1.0).run(2)
    assert numbers == [0, 0, *range(16), *range(16)]  # warm-up, a call to see how long it takes, then the rounds
    assert samples["short"] == [0.0625, 0.0625]


def test_a_variant_that_fails_is_left_out_unless_it_is_ours() -> None:
    def fail(i: int) -> None:
        raise RuntimeError("no such index\nin some frame")

    rounds = harness.Rounds({"ours": lambda i: None, "broken": fail, "theirs": lambda i: None}, CPU, sample=0.0)
    assert rounds.failed == {"broken": "no such index"}
    assert list(rounds.run(1)) == ["ours", "theirs"]
    with pytest.raises(RuntimeError, match="no such index"):
        harness.Rounds({"ours": fail, "theirs": lambda i: None}, CPU)


def test_batches_made_ahead_are_not_timed() -> None:
    order: list[str] = []
    calls = {name: lambda i, name=name: order.append(name) for name in "ab"}  # type: ignore[misc]
    harness.Rounds(calls, CPU, sample=0.0, lead=2).run(2)
    assert order == ["a"] * 6 + ["b"] * 6 + (["a"] * 3 + ["b"] * 3) * 2


@pytest.mark.parametrize(("now", "slower"), [(9.5, False), (7.7, False), (7.5, True)])
def test_a_ratio_below_every_recorded_one_less_a_fifth_has_shrunk(now: float, slower: bool) -> None:
    recorded = {"native": [1.0, 1.0, 1.0], "eager": [9.5, 10.0, 10.5], "copy": [1.0, 1.0, 1.0]}
    found = harness.shrunk({"native": [1.0], "eager": [now], "copy": [0.1]}, [recorded])
    assert found == ["eager takes 7.50x as long, at least 7.60x is expected"] * slower


def test_a_wide_spread_of_recorded_ratios_allows_more() -> None:
    recorded = {"native": [1.0, 1.0, 1.0], "eager": [8.0, 10.0, 12.0]}
    assert not harness.shrunk({"native": [1.0], "eager": [4.9]}, [recorded])
    assert harness.shrunk({"native": [1.0], "eager": [4.7]}, [recorded])


def test_of_several_machines_the_least_ratio_counts() -> None:
    recorded = [{"native": [1.0], "eager": [10.0]}, {"native": [1.0], "eager": [6.0]}, {"native": [1.0]}]
    for now, is_slower in ((3.1, False), (2.9, True)):
        assert bool(harness.shrunk({"native": [1.0], "eager": [now]}, recorded, tolerance=0.5)) == is_slower


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ROUNDS", 3)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def measured(tmp_path: Path, small: None) -> Path:
    out = tmp_path / "operators.json"
    assert (
        cli.run(["bench", "operators", "--only", "dropout 256x9216 float32", "--device", "cpu", "--out", str(out)]) == 0
    )
    return out


def test_the_file_holds_what_was_printed(measured: Path, capfd: pytest.CaptureFixture[str]) -> None:
    written = json.loads(measured.read_text())
    assert written["machine_info"]["torch"] == torch.__version__.split("+")[0]
    assert "node" not in written["machine_info"]  # the name of the host
    names = [entry["name"] for entry in written["benchmarks"]]
    assert names == [f"operators[dropout 256x9216 float32 {work}]" for work in ("forward", "forward + backward")]
    for entry in written["benchmarks"]:
        seconds = entry["extra_info"]["seconds"]
        assert list(seconds) == ["native", "eager", "compiled", "copy"]
        assert all(len(samples) == 3 and min(samples) > 0 for samples in seconds.values())
        assert entry["stats"]["rounds"] == 3
        table = harness.lines(entry)
        assert (
            table[0] == entry["name"] and "1.00x" in table[1] and f"{harness.ratio(seconds, 'eager'):.2f}x" in table[2]
        )
    printed = capfd.readouterr().out
    cli.run(["bench", "operators", "--only", "dropout 256x9216 float32", "--device", "cpu"])
    printed = capfd.readouterr().out
    assert all(name in printed for name in names) and printed.count("native") == 2


def test_the_output_says_what_is_next_and_what_is_left_out(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a processor without products in bfloat16, whether or not the output is a terminal."""
    monkeypatch.setattr("fasttransfer.core.machine.instructions", lambda: ("avx2",))
    monkeypatch.setattr("fasttransfer.bench.operators.BATCH", 1)
    out, page = tmp_path / "results.json", tmp_path / "page.md"
    case = "conv_relu_pool_lrn stage 1, batch 64"
    assert harness.run("operators", only=case, device="cpu", quick=True, out=out, page=page) == 0
    left_out = f"operators[{case} bfloat16 forward]: this processor emulates products in bfloat16"
    printed = capfd.readouterr().out.splitlines()
    assert printed[0] == f"[1 of 2] operators[{case} bfloat16 forward]"
    assert printed[1] == f"    left out: {left_out}"
    assert re.fullmatch(r"\[2 of 2, about \d+ s left\] " + re.escape(f"operators[{case} float32 forward]"), printed[2])
    written = page.read_text()
    assert f"| operators[{case} float32 forward] | native |" in written
    assert written.endswith(f"## Left out\n\n* {left_out}\n")


def _slow_down(path: Path, factor: float = 1000) -> dict[str, Any]:
    """Rewrite a result as if PyTorch had taken so many times as long."""
    written: dict[str, Any] = json.loads(path.read_text())
    for entry in written["benchmarks"]:
        seconds = entry["extra_info"]["seconds"]
        seconds["eager"] = [factor * each for each in seconds["eager"]]
    path.write_text(json.dumps(written))
    return written


def test_a_ratio_that_has_shrunk_fails_and_is_named(measured: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "operators", "--only", "dropout 256x9216 float32 forward]", "--device", "cpu"]
    _slow_down(measured)
    assert cli.run([*words, "--baseline", str(measured)]) == 1
    assert "eager takes" in capfd.readouterr().out


@pytest.mark.parametrize(("factor", "code"), [(1.4, 0), (1000, 1)])
def test_half_of_the_ratio_is_expected_on_another_machine(measured: Path, factor: float, code: int) -> None:
    written = _slow_down(measured, factor)
    written["machine_info"]["processor"] = "another"
    measured.write_text(json.dumps(written))
    words = ["bench", "operators", "--only", "dropout 256x9216 float32 forward]", "--device", "cpu"]
    assert cli.run([*words, "--baseline", str(measured)]) == code


def test_another_kind_of_device_gives_no_verdict(measured: Path, capfd: pytest.CaptureFixture[str]) -> None:
    written = _slow_down(measured)
    written["machine_info"]["cuda"] = "13.0: a GPU"
    measured.write_text(json.dumps(written))
    words = ["bench", "operators", "--only", "dropout 256x9216 float32 forward]", "--device", "cpu"]
    assert cli.run([*words, "--baseline", str(measured)]) == 0
    assert "no baseline has this case on this kind of device" in capfd.readouterr().out


def test_bad_input_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: False)
        assert cli.run(["bench", "step", "--device", "cuda"]) == 2
        assert "--device cuda: PyTorch sees no CUDA device" in capsys.readouterr().err
    assert cli.run(["bench", "operators", "--only", "no such case"]) == 2
    assert "--only no such case: no case of bench operators has that in its name" in capsys.readouterr().err
    write(tmp_path / "odd", {f"{name}/0.jpg": encoded(noise(1), "PNG") for name in "ab"})
    assert cli.run(["bench", "feed", "--quick", "--data", str(tmp_path / "odd")]) == 2
    assert "holds no JPEG in colour or grey" in capsys.readouterr().err
    (tmp_path / "file").touch()
    for option, path, said in (
        ("--out", tmp_path / "file/x.json", "a file has this name, a folder is needed"),
        ("--baseline", tmp_path / "none.json", "cannot be read"),
        ("--baseline", tmp_path / "file", "is no result of a benchmark"),
    ):
        assert cli.run(["bench", "operators", "--only", "dropout", option, str(path)]) == 2
        assert said in capsys.readouterr().err


def test_what_was_measured_before_survives_a_run_that_is_refused(measured: Path) -> None:
    before = measured.read_bytes()
    assert cli.run(["bench", "operators", "--only", "no such case", "--out", str(measured)]) == 2
    assert measured.read_bytes() == before
    assert [path.name for path in measured.parent.iterdir() if path.name.startswith(".")] == []


def test_without_pytest_benchmark_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytest_benchmark", None)
    assert cli.run(["bench", "step"]) == 2
    assert "pip install 'fasttransfer[bench]'" in capsys.readouterr().err


def test_an_interrupted_run_keeps_what_it_measured(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(harness.Rounds):
        begun = 0

        def run(self, rounds: int) -> harness.Samples:
            raise AssertionError("pytest-benchmark takes the samples")

        def prepare(self, name: str) -> None:
            type(self).begun += name == "native"
            if type(self).begun == 6:  # in the second case: the first needs a warm-up and three rounds
                raise KeyboardInterrupt
            super().prepare(name)

    monkeypatch.setattr(harness, "Rounds", Interrupted)
    out = tmp_path / "operators.json"
    assert cli.run(["bench", "operators", "--only", "dropout 256x9216 float32", "--out", str(out)]) == 130
    assert list(harness.read(out)["benchmarks"]) == ["operators[dropout 256x9216 float32 forward]"]
