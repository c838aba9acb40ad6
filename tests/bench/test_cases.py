"""The cases that are timed run, and the variants of a case do the same work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sources import encoded, noise, write
from torch.utils.dlpack import from_dlpack

from bench import features, memory, projection
from bench import test_ablation as ablation
from bench import test_cells as cells
from bench import test_cohorts as cohorts
from fasttransfer import cli
from fasttransfer.bench import feed, harness, operators, step
from fasttransfer.bench.baselines import loaders
from fasttransfer.core.files import cache_folder
from fasttransfer.networks.caffenet import CAFFENET_MINI
from fasttransfer.study.cells import deepest_cuts
from fasttransfer.study.paper import IMAGES_PER_SECOND

CPU = torch.device("cpu")


def photograph(seed: int) -> bytes:
    """Return a JPEG that is larger than a crop."""
    return encoded(noise(seed, width=30, height=20).resize((300, 260)))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)


@pytest.mark.parametrize(
    "operator",
    ["augment", "conv_relu", "conv_relu_backward", "conv_relu_pool_lrn", "dropout", "pack_features", "relu_pool",
     "relu_pool_lrn", "resize", "sgd_step", "sparse_conv_backward", "unpack_features"],
)  # fmt: skip
@pytest.mark.usefixtures("uncompiled")
def test_every_operator_has_cases_that_run(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "BATCH", 2)
    found = [case for case in operators.cases() if case.operator == operator]
    found = [case for case in found if case.dtype != torch.float32] or found
    assert found
    for case in found:
        calls = case.variants(CPU)
        assert next(iter(calls)) == "native" and "eager" in calls
        for call in calls.values():
            call(0)
            call(1)


def test_products_that_the_processor_emulates_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fasttransfer.core.machine.instructions", lambda: ("avx2",))
    emulated = {case.operator for case in operators.cases() if case.why_not(CPU)}
    assert emulated == {"conv_relu_pool_lrn", "sparse_conv_backward"}
    assert not any("bf16" in name for name in step.variants(CAFFENET_MINI, 1, CPU, compiled=False))
    monkeypatch.setattr("fasttransfer.core.machine.instructions", lambda: ("avx2", "avx512_bf16"))
    assert not any(case.why_not(CPU) for case in operators.cases())
    assert next(iter(step.variants(CAFFENET_MINI, 1, CPU, compiled=False))) == "fasttransfer bf16"


@pytest.mark.usefixtures("uncompiled")
def test_every_variant_of_the_step_runs() -> None:
    calls = step.variants(CAFFENET_MINI, 2, CPU)
    for call in calls.values():
        call(0)
    rows = step.profile(next(iter(calls.values())), CPU, steps=1)
    assert any("convolution" in str(row["operator"]) for row in rows)
    spent = [float(row["ms"]) for row in rows]
    assert spent == sorted(spent, reverse=True)


def test_images_are_decoded_prepared_and_fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "BATCH", 4)
    monkeypatch.setattr(harness, "QUICK_ROUNDS", 2)
    monkeypatch.setattr(feed, "gather", lambda *given, gather=feed.gather: gather(*given[:-1], 12))
    source = write(tmp_path / "source", {f"{'ab'[i % 2]}/{i}.jpg": photograph(i) for i in range(6)})
    write(source, {"a/odd.png": encoded(noise(1), "PNG"), "b/cmyk.jpg": encoded(noise(1).convert("CMYK"))})
    out = tmp_path / "feed.json"
    words = ["bench", "feed", "--quick", "--device", "cpu", "--data", str(source), "--out", str(out)]
    assert cli.run(words) == 0
    expected = {
        "decode": ["Pillow", "torchvision", "DALI"],
        "resize": ["fasttransfer", "Pillow", "torchvision", "DALI"],
        "prepare": ["prepare raw", "prepare jpeg", "decode only, torchvision", "decode only, DALI"],
        "feed": ["fasttransfer raw", "fasttransfer jpeg", "DataLoader as usual", "DataLoader + draft",
                 "DataLoader + v2 resize", "DataLoader + Pillow", "DataLoader + torchvision", "DataLoader + arrays",
                 "DALI", "copy"],
    }  # fmt: skip
    entries = harness.read(out)["benchmarks"]
    for name, entry in entries.items():
        what = name.removeprefix("feed[").split("-")[0]
        assert list(entry["extra_info"]["seconds"]) == expected[what]
        assert entry["extra_info"]["source"]["images"] == 12 and entry["extra_info"]["source"]["different"] == 6
    assert {name.removeprefix("feed[").split("-")[0] for name in entries} == set(expected)
    assert str(tmp_path) not in out.read_text()
    assert not any(path.name.startswith("bench-") for path in cache_folder().iterdir())


@pytest.mark.parametrize("decoders", [feed.decoders, feed.resizers])
def test_decoders_do_the_same(decoders: Callable[..., dict[str, Callable[[int], object]]]) -> None:
    """DALI's results cannot be had from its calls."""
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
    grey = Image.new("RGB", (256, 256), (130, 120, 110))
    jpegs = (encoded(grey.resize(size), "JPEG", quality=100) for size in ((256, 256), (800, 600)))
    small, large = (write(tmp_path / str(i), {f"a/{i}.jpg": data for i in range(4)}) for i, data in enumerate(jpegs))
    files, originals = (sorted((folder / "a").iterdir()) for folder in (small, large))
    reads = (loaders.with_pillow, loaders.with_torchvision)
    batches = [next(loaders.dataloader(files, read, 227, 4, 0)) for read in reads]
    for read in (loaders.reduced, loaders.resized):
        batches.append(next(loaders.dataloader(originals, partial(read, side=256), 227, 4, 0)))
    batches.append(next(loaders.of_arrays(np.stack([np.asarray(grey)] * 4), 227, 4)))
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    batches.append(next(loaders.as_usual(large, 256, 227, 4, 0))[0])
    (from_dali,) = loaders.dali(files, 227, 4, 1, CPU)()  # type: ignore[misc]
    batches.append(from_dlpack(from_dali.as_tensor()).clone())
    expected = torch.tensor([130.0, 120.0, 110.0]) - torch.tensor(loaders.MEAN)
    for batch in batches:
        assert batch.shape == (4, 3, 227, 227) and batch.dtype == torch.float32
        torch.testing.assert_close(batch, expected.view(1, 3, 1, 1).expand_as(batch), atol=1.0, rtol=0)


def test_on_cores_restores_threads_and_affinity() -> None:
    threads, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    with feed.on_cores(1):
        assert len(os.sched_getaffinity(0)) == 1 and torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == allowed and torch.get_num_threads() == threads


def test_memory_of_stores_and_feeds_is_measured(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {f"{name}/{i}.jpg": photograph(i) for name in "ab" for i in range(4)})
    for name, count in (("few", 64), ("many", 150)):
        feed.lay_out(source, tmp_path / name, count)
    found = memory.measure(tmp_path)
    assert set(found) == {"raw", "jpeg"}
    assert found["raw"]["store"] >= 150 * 256 * 256 * 3 > found["jpeg"]["store"] > 0
    assert all(0 <= found[kind][what] < 1 << 30 for kind in found for what in ("prepare", "feed"))


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


@pytest.mark.usefixtures("uncompiled")
def test_every_optimisation_can_be_taken_away() -> None:
    blobs = [encoded(noise(seed, width=80, height=90)) for seed in range(2)]
    made = (
        ablation.steps(CAFFENET_MINI, 2, "bf16", CPU),
        ablation.cohorts(CAFFENET_MINI, 2, "bf16", CPU),
        ablation.feeds(CAFFENET_MINI, 2, "bf16", CPU, blobs),
    )
    for calls in made:
        assert next(iter(calls)) == ablation.WHOLE and len(calls) > 1
        for call in calls.values():
            call(0)


def test_without_an_optimisation_it_is_the_same_network() -> None:
    """Logits and updated weights, as far as bfloat16 agrees with itself in another order."""
    x = step.random_images(CAFFENET_MINI, 4, "bf16", CPU)
    with torch.no_grad():
        whole = step.trainer_of(CAFFENET_MINI, "bf16", CPU).net(x)
        for kind in (ablation._Composite, ablation._Planes, ablation._Grouped, ablation._Dense, ablation._Padded):
            net = step.trainer_of(CAFFENET_MINI, "bf16", CPU, change=lambda n, k=kind: ablation._exchange(n, k)).net
            torch.testing.assert_close(net(x), whole, rtol=0.1, atol=0.02 * float(whole.abs().max()))
    after = []
    for kind in (step.StageTrainer, ablation._PlainUpdate):
        torch.manual_seed(0)
        trainer = step.trainer_of(CAFFENET_MINI, "bf16", CPU, kind=kind)
        step.stepping(trainer, x, recorded=False)(0)
        after.append(trainer.weights["fc8.weight"])
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


def test_cells_train_in_a_cohort_live_and_from_the_cache(tmp_path: Path) -> None:
    context = cohorts.open_study(tmp_path, "mini", 2, 8, "cpu")
    made = cohorts.cohort(context, (5, 7), CPU), cohorts.cohort(context, (5, 7), CPU, "cache")
    for each in made:
        train = cohorts.stepping(each)
        train(0)
        train(1)
        each._target.feed.close()
    live, cached = ([list(m.trainee.weights.values()) for m in each._members] for each in made)
    assert all(
        torch.equal(a, b) for one, other in zip(live, cached, strict=True) for a, b in zip(one, other, strict=True)
    )


# -- the projection -------------------------------------------------------------------------------------------------


def test_all_of_the_papers_networks_are_projected() -> None:
    found = projection.papers_networks()
    assert sum(len(cohort.cells) for cohort in found) == projection.NETWORKS
    assert sum(cohort.steps == 200_000 for cohort in found) == 12
    together = [len(cohort.cells) for cohort in found if len(cohort.cells) > 1]
    # 0A: 7 transfer, 7 selffer, 7 selffer+; 1A: 3 of the last; 0B and halves without fine-tuned networks: 14.
    assert sorted(together, reverse=True)[:3] == [21, 17, 14]


def test_the_papers_rates_give_the_papers_days() -> None:
    # At the K20's own rates, its networks alone take what they took: 1548 days were counted as 9.5 each.
    rates = {cells.TRAIN.format(n): [1 / rate] for n, rate in enumerate(IMAGES_PER_SECOND)}
    rates |= {cells.FORWARD.format(n): [0.0] for n in range(1, 9)}
    _, alone = projection.project(rates, 1.0, 0.0)
    assert 900 < alone / 86400 < projection.K20_DAYS


def test_a_cohort_takes_its_prefix_once_and_every_cell() -> None:
    frozen = next(c for c in projection.papers_networks() if len(c.cells) == 7)
    assert max(deepest_cuts(frozen.cells).values()) == 7
    one = projection.PaperCohort(frozen.cells, steps=1000, val_images=100)
    train, forward = [1.0 + n for n in range(8)], [0.1 * n for n in range(9)]
    training = 1000 * 256 * (0.01 + 0.7 + sum(1.0 + n for n in range(1, 8)))
    checking = 100 * (0.01 + 0.7 + sum(0.8 - 0.1 * n for n in range(1, 8)))
    assert one.seconds(train, forward, 0.01) == pytest.approx(training + checking)


def test_results_that_are_committed_read_as_results() -> None:
    folder = Path(__file__).parents[2] / "bench" / "results"
    for path in folder.glob("*-*.json"):
        written = json.loads(path.read_text())
        if "benchmarks" in written and "note" in written:
            for entry in harness.read(path)["benchmarks"].values():
                assert harness.lines(entry)[0] == entry["name"]
