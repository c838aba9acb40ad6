"""The study written plainly is the same study, and `fasttransfer bench grid` compares the two."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from studies import draw_images, tiny_choices

from fasttransfer import cli
from fasttransfer.bench import grid
from fasttransfer.bench.baselines import study as plain
from fasttransfer.bench.baselines.caffenet import CUTS, caffenet, layers
from fasttransfer.bench.harness import ratio, read
from fasttransfer.core import devices, randomness
from fasttransfer.core.files import cache_folder
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI, CaffeNet, CaffeNetArchitecture
from fasttransfer.networks.geometry import LAYER_NAMES
from fasttransfer.pipelines.mean_images import compute_mean_image
from fasttransfer.pipelines.memory_feed import MemoryFeed
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.streams import Stream, select_task_images
from fasttransfer.pipelines.synthetic import SIDES
from fasttransfer.study.cells import TREATMENTS, Cell, study_cells
from fasttransfer.training.study_plan import make_plan

CELLS = study_cells("AB", ("selffer", "transfer+", "random"), (2, 7), (0,), 8)
NAMES = {side: [name for name in sorted(SIDES) if SIDES[name] == side][:2] for side in ("natural", "man-made")}
SETTINGS = plain.Settings(threads=1, workers=0, channels_last=False)


def job_in(folder: Path, **changes: object) -> plain.PlainJob:
    plan = make_plan(tiny_choices(folder, **changes))
    (folder / "job.json").write_text(json.dumps(grid.job_of(plan, CELLS, SETTINGS)))
    return plain.PlainJob.read(folder / "job.json")


def study_of(job: plain.PlainJob) -> plain.PlainStudy:
    return plain.PlainStudy(job, SETTINGS, plain.mean_images(job))


@pytest.mark.parametrize(("network", "batch"), [(CAFFENET, 1), (CAFFENET_MINI, 3)])
def test_the_network_is_ours_at_every_cut(network: CaffeNetArchitecture, batch: int) -> None:
    weights = network.draw(10, "he", lambda stage: randomness.key(0, "test", stage))
    ours, net = CaffeNet(network, 10), caffenet(network, 10).eval()
    ours.load(weights)
    for name, layer in zip(LAYER_NAMES, layers(net), strict=True):
        layer.weight.data.copy_(weights[f"{name}.weight"])
        assert layer.bias is not None
        layer.bias.data.copy_(weights[f"{name}.bias"])
    x = torch.randn(batch, *network.cut_shape(0))
    with torch.no_grad():
        for n in range(1, 9):
            expected = ours(x, stop=n)
            torch.testing.assert_close(net[: CUTS[n]](x).view_as(expected), expected, rtol=1e-4, atol=1e-4)


def test_images_means_and_labels_are_ours(tmp_path: Path) -> None:
    job, plan = job_in(tmp_path), make_plan(tiny_choices(tmp_path))
    geometry, scale = job.geometry, job.recipe["scale"]
    store = prepare(Path(plan.choices.data), size=geometry.store, cache=cache_folder(), log=lambda _: None)
    study = study_of(job)
    for task, classes in plan.classes.items():
        train, val = (select_task_images(store, part, classes) for part in (store.train, store.val))
        mean = compute_mean_image(train)
        np.testing.assert_allclose(study.means[task], mean, atol=0.2)  # decoders differ by a bit of a pixel
        stream = Stream(1, 2, len(train), 8, geometry.store - geometry.crop)
        means = {task: torch.from_numpy(mean)}
        ours = list(
            MemoryFeed(train, val, stream, means, device=torch.device("cpu"), crop=geometry.crop, scale=scale).val()
        )
        network = plain.Network("base", task, None, 0, False, task)
        theirs = list(study.loader(network, training=False))
        assert torch.equal(torch.cat([b.labels for b in ours]), torch.cat([labels for _, labels in theirs]))
        torch.testing.assert_close(
            torch.cat([b.images[task] for b in ours]), torch.cat([x for x, _ in theirs]), atol=3 * scale, rtol=0
        )


def test_training_shows_every_corner_and_both_ways_round(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    side, crop = job.geometry.store, job.geometry.crop
    file, _ = job.tasks["A"].train[0]
    whole = plain.read(file, side).astype(np.float32)
    views = plain.PlainViews([(file, 0)], np.zeros((side, side, 3), np.float32), crop, 1.0, training=True)
    torch.manual_seed(0)
    seen = {views[0][0].permute(1, 2, 0).numpy().tobytes() for _ in range(400)}
    margin = side - crop + 1
    crops = [whole[top : top + crop, left : left + crop] for top in range(margin) for left in range(margin)]
    assert seen == {view.tobytes() for each in crops for view in (each, each[:, ::-1])}


def test_what_is_frozen_stays_and_what_is_copied_comes_from_the_base(tmp_path: Path) -> None:
    study = study_of(job_in(tmp_path))
    base = plain.Network("baseA", "A", None, 0, False, "A")
    study.bases["A"] = study.build(base)
    begun = [layer.weight.detach().clone() for layer in layers(study.bases["A"])]
    for frozen in (True, False):
        network = plain.Network("A2B", "B", "A", 2, frozen, "A")
        net = study.build(network)
        start = [layer.weight.detach().clone() for layer in layers(net)]
        assert [torch.equal(a, b) for a, b in zip(begun, start, strict=True)] == [True] * 2 + [False] * 6
        assert sum(1 for _ in study.steps(network, net)) == study.job.tasks["B"].steps
        moved = [not torch.equal(a, layer.weight) for a, layer in zip(start, layers(net), strict=True)]
        assert moved == [not frozen] * 2 + [True] * 6
    assert all(torch.equal(a, layer.weight) for a, layer in zip(begun, layers(study.bases["A"]), strict=True))


def test_the_plain_study_learns_and_checks_when_ours_does(tmp_path: Path) -> None:
    job_in(tmp_path, steps=60)
    plain.main("train", tmp_path / "job.json", tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())
    assert list(found) == [cell.name for cell in CELLS]
    assert all(len(checks) == 3 for checks in found.values())
    assert min(found["baseA"][-1], found["baseB"][-1]) > 0.6  # chance is a third


def test_the_usual_settings_are_tried_and_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_in(tmp_path)
    monkeypatch.setattr(plain, "_WARM_UP", 1)
    monkeypatch.setattr(plain, "_TIMED", 2)
    threads = torch.get_num_threads()
    found = plain.tune(job, 1)
    torch.set_num_threads(threads)
    assert {(f["threads"], f["workers"], f["channels_last"]) for f in found} == {
        (1, workers, last) for workers in (0, 1) for last in (False, True)
    }
    sums = [sum(f["seconds"].values()) for f in found]
    assert sums == sorted(sums) and sums[0] > 0


def test_a_study_both_ways_through_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process where that changes nothing but the time it takes."""

    def run(words: Sequence[str], folder: Path) -> grid.Found:
        arguments = list(words[2:])
        if words[1] == "fasttransfer":
            assert cli.run(arguments) == 0
        else:
            plain.main(arguments[0], Path(arguments[1]), Path(arguments[2]))
        return {"wall_seconds": 2.0 if words[1] == "fasttransfer" else 5.0, "peak_memory_bytes": 1}

    def tune(job: plain.PlainJob, cores: int) -> list[grid.Found]:
        return [{"threads": 1, "workers": 0, "channels_last": True, "seconds": {"base": 1.0}}]

    monkeypatch.setattr(grid, "run_python", run)
    monkeypatch.setattr(plain, "tune", tune)
    monkeypatch.setattr(
        grid, "_rates", lambda plan: grid.rates_of_one(CAFFENET_MINI, 2, 2, "fp32", "cpu", 1, lambda: None)
    )
    monkeypatch.setattr(grid, "_SAMPLE", 0.001)
    monkeypatch.setattr(grid, "QUICK_LAYERS", (2, 7))
    monkeypatch.setattr(devices, "count_workers", lambda device, threads: 1)
    images, out = draw_images(tmp_path / "images", (*NAMES["natural"], *NAMES["man-made"])), tmp_path / "grid.json"
    threads = torch.get_num_threads()
    options = ["--quick", "--data", str(images), "--classes", "2", "--epochs", "2", "--device", "cpu"]
    assert cli.run(["bench", "grid", *options, "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    assert str(tmp_path) not in out.read_text()
    found = read(out)["benchmarks"]["grid"]["extra_info"]
    study = found["study"]
    assert study["networks"] == 24 and study["classes"] == {"A": 2, "B": 2}
    assert study["steps"] == {"A": 3, "B": 3}  # 20 images twice, 16 per step
    assert found["work"] == [24 * 3 * 16, "images"]
    names = {cell.name for cell in study_cells("AB", TREATMENTS, (2, 7), (0,), 8)}
    assert set(found["top1"]) == {"fasttransfer", "plain PyTorch", "other seed"}
    for scores in found["top1"].values():
        assert set(scores) == names and all(0 <= score <= 1 for score in scores.values())
    limit = found["limit"]
    assert limit["multiply_adds"]["fasttransfer"] < limit["multiply_adds"]["plain PyTorch"]
    for name, share in found["ways"]["plain PyTorch"]["of_limit"].items():
        assert share == pytest.approx(limit["seconds"]["plain PyTorch"][name] / 5, abs=3e-3)
    assert found["ways"]["plain PyTorch"]["settings"] == {"threads": 1, "workers": 0, "channels_last": True}
    assert ratio(found["seconds"], "plain PyTorch") == 2.5
    assert isinstance(found["agreement"]["agree"], bool)


def test_a_way_is_run_in_a_process_of_its_own(tmp_path: Path) -> None:
    script = "import time; held = bytearray(60 << 20); held[::4096] = b'x' * len(held[::4096]); time.sleep(1.2)"
    start = time.monotonic()
    found = grid.run_python(["-c", script], tmp_path)
    assert 1.2 <= found["wall_seconds"] <= time.monotonic() - start + 0.01  # it is rounded
    if sys.platform == "linux":
        assert found["peak_memory_bytes"] > 60 << 20
    with pytest.raises(RuntimeError, match="no such thing"):
        grid.run_python(["-c", "raise SystemExit('no such thing')"], tmp_path)


def test_agreement_is_judged_by_another_seed() -> None:
    cells = study_cells("AB", ("selffer", "transfer", "random"), (1, 4), (0,), 8)
    cohort = {cell.name: 0.5 for cell in cells}

    def moved(a: float, b: float) -> dict[str, float]:
        """Networks that copy from A, and those that do not."""
        return {cell.name: 0.5 + (a if (cell.source or cell.target) == "A" else b) for cell in cells}

    other = moved(0.03, -0.01)
    same = grid.agreement(cells, cohort, moved(0.01, 0.0), other)
    assert same["noise_of_mean"] == pytest.approx(np.sqrt((2 * 0.03**2 + 4 * 0.01**2) / 6 / 6), abs=1e-4)
    assert same["agree"]
    assert same["by_treatment"]["random"] == 0.0
    apart = grid.agreement(cells, cohort, moved(0.06, 0.06), other)
    assert not apart["agree"] and apart["plain - ours"] == {"mean": 0.06, "spread": 0.0}


def test_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["bench", "step", "--classes", "3"]) == 2  # trains no study
    assert cli.run(["bench", "grid", "--data", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'none'}: does not exist: name a folder of images or an uncompressed tar" in error
    (tmp_path / "odd.tar").write_bytes(b"no tar at all")
    assert cli.run(["bench", "grid", "--data", str(tmp_path / "odd.tar")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'odd.tar'}: is not a tar archive (" in error and "name a folder of images" in error


def test_cells_are_told_as_the_plain_study_needs_them(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    of = {network.name: network for network in job.networks}
    assert of["A7B+"] == plain.Network("A7B+", "B", "A", 7, False, "A")
    assert of["R2A"] == plain.Network("R2A", "A", "R", 2, True, "A")
    assert [n.source for n in job.networks[:2]] == [None, None]
    assert job.tasks["A"].steps == 12 and job.tasks["A"].checks == [4, 8, 12]
    assert Cell(0, "B", "transfer+", 7).name == "A7B+"
