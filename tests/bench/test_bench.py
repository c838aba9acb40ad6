"""What the benchmarks report: each case runs natively and plainly, and a file holds what was printed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sources import encoded, noise, write
from torch.utils.dlpack import from_dlpack

from fasttransfer import cli
from fasttransfer.bench import command, data, features, kernels, memory, timing, training
from fasttransfer.bench.baselines import loaders
from fasttransfer.core.files import cache_folder
from fasttransfer.networks.geometry import CAFFENET_MINI

CPU = torch.device("cpu")


def photograph(seed: int) -> bytes:
    """A JPEG that is larger than a crop."""
    return encoded(noise(seed, width=30, height=20).resize((300, 260)))


@dataclass
class Clock:
    """Stands for the module `time`: goes only as far as a test lets it."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_variants_are_timed_in_turn_and_slower_is_slower(clock: Clock) -> None:
    order: list[str] = []

    def call(name: str, *seconds: float) -> object:
        """Takes the first of `seconds` at the first call that is timed after the warm-up, and so on."""
        order.append(name)
        clock.now += seconds[max(0, order.count(name) - 3)]
        return None

    found = timing.compare(
        {"slow": lambda i: call("slow", 8.0, 16.0, 9.0), "fast": lambda i: call("fast", 2.0, 2.0, 2.0)},
        CPU,
        rounds=3,
        sample=0.0,
    )
    assert order == ["slow"] * 2 + ["fast"] * 2 + ["slow", "fast"] * 3
    assert found["slow"] == timing.Timing(median=9.0, least=8.0, most=16.0, rounds=3, samples=(8.0, 16.0, 9.0))
    assert found["fast"] == timing.Timing(median=2.0, least=2.0, most=2.0, rounds=3, samples=(2.0, 2.0, 2.0))


def test_short_calls_are_repeated_and_numbered(clock: Clock) -> None:
    numbers: list[int] = []

    def short(i: int) -> None:
        numbers.append(i)
        clock.now += 0.0625

    found = timing.compare({"short": short}, CPU, rounds=2, sample=1.0)
    assert numbers == [0, 0, *range(16), *range(16)]  # to warm up, to see how long it takes, then once a round
    assert found["short"].samples == (0.0625, 0.0625)


@pytest.mark.parametrize(
    "operator",
    ["augment", "conv_relu_pool_lrn", "dropout", "pack_features", "relu_pool", "relu_pool_lrn", "resize", "sgd_step",
     "sparse_conv_backward", "unpack_features"],
)  # fmt: skip
def test_every_operator_has_cases_that_run(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BATCH", 2)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    found = [case for case in kernels.cases() if case.operator == operator and case.dtype != torch.float32]
    assert found
    for case in found:
        calls = case.variants(CPU)
        assert {"native", "eager"} <= set(calls)
        for call in calls.values():
            call(0)
            call(1)


def test_packed_features_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(features, "RECORDS", 2 * features.BLOCK)
    x = torch.randn(100, 1000).masked_fill(torch.rand(100, 1000) >= 0.3, 0.0).bfloat16()
    strung = features.strung(x)
    found = features.measure(strung, rounds=1)
    assert abs(found["of_dense"]["packed"] - 1 / 16 - features.kept(strung)) < 0.001
    assert set(found["pack_gb_s"]) == set(found["unpack_gb_s"]) == {*found["of_dense"], "copy"}
    rates = features.measure_shards(strung, 1, tmp_path)
    assert {"write packed", "read packed, 1 thread and the caller", "read dense, 1 thread and the caller"} <= set(rates)
    assert all(rate > 0 for rate in rates.values())


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
        seconds = case["seconds"]
        share = seconds["copy"]["median"] / seconds["native"]["median"]  # how large it is depends on the machine's load
        assert case["of_copy"] == pytest.approx(share, rel=0.01)
        assert all(0 < t["least"] <= t["median"] <= t["most"] for t in case["seconds"].values())


def test_the_images_way_in_runs_and_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "QUICK", command.Size(2, 2, 12, 0, 0.0))
    monkeypatch.setattr(data, "BATCH", 4)
    source = write(tmp_path / "source", {f"{'ab'[i % 2]}/{i}.jpg": photograph(i) for i in range(6)})
    write(source, {"a/odd.png": encoded(noise(1), "PNG"), "b/cmyk.jpg": encoded(noise(1).convert("CMYK"))})
    console, out = Console(file=io.StringIO(), width=200), tmp_path / "data.json"
    command.run("data", quick=True, only="", device="cpu", out=out, console=console, source=source)
    found = json.loads(out.read_text())
    assert found["command"] == "fasttransfer bench data --data source --quick"
    assert found["images"]["images"] == 12 and found["images"]["different"] == 6
    assert str(tmp_path) not in out.read_text()
    expected = {
        "decode": {"Pillow", "torchvision", "DALI"},
        "resize": {"fasttransfer", "Pillow", "torchvision", "DALI", "DALI + fasttransfer's resize"},
        "prepare": {"prepare raw", "prepare jpeg", "decode only, torchvision", "decode only, DALI"},
        "feed": {
            "fasttransfer raw",
            "fasttransfer jpeg",
            "DataLoader + Pillow",
            "DataLoader + torchvision",
            "DALI",
            "copy",
        },
    }
    for step, names in expected.items():
        for cores, measured in found[step].items():
            assert set(measured["seconds"]) == set(measured["images per second"]) == names
            assert f"{step}, {cores}" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "memory" not in found
    assert not any(path.name.startswith("bench-") for path in cache_folder().iterdir())


@pytest.mark.parametrize("decoders", [data.decoders, data.resizers])
def test_decoders_do_the_same(decoders: Callable[..., dict[str, Callable[[int], object]]]) -> None:
    """As far as their results can be had: not DALI's."""
    blobs = [photograph(i) for i in range(3)]
    calls = decoders(blobs, 1, CPU)
    made = {name: call(0) for name, call in calls.items() if "DALI" not in name}
    assert len(made) >= 2
    for found in made.values():
        for ours, theirs in zip(made["Pillow"], found, strict=True):  # type: ignore[call-overload]
            pixels = np.asarray(theirs).astype(np.int64).squeeze()
            pixels = pixels if pixels.shape[-1] == 3 else pixels.transpose(1, 2, 0)
            assert np.abs(pixels - ours).max() <= 1


def test_loaders_give_crops_less_the_mean(tmp_path: Path) -> None:
    grey = encoded(Image.new("RGB", (256, 256), (130, 120, 110)), "JPEG", quality=100)
    files = sorted(write(tmp_path, {f"{i}.jpg": grey for i in range(4)}).iterdir())
    reads = (loaders.with_pillow, loaders.with_torchvision)
    batches = [next(loaders.dataloader(files, read, 227, 4, 0)) for read in reads]
    (from_dali,) = loaders.dali(files, 227, 4, 1, CPU)()  # type: ignore[misc]
    batches.append(from_dlpack(from_dali.as_tensor()).clone())
    expected = torch.tensor([130.0, 120.0, 110.0]) - torch.tensor(loaders.MEAN)
    for batch in batches:
        assert batch.shape == (4, 3, 227, 227) and batch.dtype == torch.float32
        torch.testing.assert_close(batch, expected.view(1, 3, 1, 1).expand_as(batch), atol=1.0, rtol=0)


def test_on_cores_restores_what_there_was() -> None:
    threads, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    with data.on_cores(1):
        assert len(os.sched_getaffinity(0)) == 1 and torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == allowed and torch.get_num_threads() == threads


def test_memory_is_counted_in_a_process_of_its_own(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {f"{name}/{i}.jpg": photograph(i) for name in "ab" for i in range(4)})
    for name, count in (("few", 64), ("many", 150)):
        data.lay_out(source, tmp_path / name, count)
    found = memory.measure(tmp_path)
    assert set(found) == {"raw", "jpeg"}
    assert found["raw"]["store"] >= 150 * 256 * 256 * 3 > found["jpeg"]["store"] > 0
    assert all(0 <= found[kind][what] < 1 << 30 for kind in found for what in ("prepare", "feed"))


def test_what_was_made_ahead_is_not_timed() -> None:
    order: list[str] = []
    variants = {name: lambda i, name=name: order.append(name) for name in "ab"}  # type: ignore[misc]
    timing.compare(variants, CPU, rounds=2, sample=0.0, lead=2)
    assert order == ["a"] * 4 + ["b"] * 4 + (["a"] * 3 + ["b"] * 3) * 2


def test_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: False)
        assert cli.run(["bench", "kernels", "--device", "cuda"]) == 2
        error = capsys.readouterr().err
        assert "--device cuda: PyTorch sees no CUDA device" in error and "choose --device cpu" in error
    assert cli.run(["bench", "kernels", "--only", "no such case"]) == 2
    error = capsys.readouterr().err  # with the names to choose among
    assert "--only no such case: no case has that in its name: " in error
    assert all(each.label in error for each in kernels.cases())
    write(tmp_path / "odd", {f"{name}/0.jpg": encoded(noise(1), "PNG") for name in "ab"})
    assert cli.run(["bench", "data", "--data", str(tmp_path / "odd")]) == 2
    assert "holds no JPEG in colour or grey" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert cli.run(["bench", "kernels", "--only", "dropout", "--out", str(tmp_path / "file/x.json")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'file'}: a file has this name, a folder is needed: choose another" in error
