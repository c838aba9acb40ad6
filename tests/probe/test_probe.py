"""The command writes its files, prints its table and refuses bad options; validation images choose nothing."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies import MANMADE, draw_images, trained_study

from fasttransfer import cli
from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.features.network_features import FeatureRequest, open_network
from fasttransfer.probe.sweep import ProbeResults, SweepSettings, choose_head, run_probe
from fasttransfer.study.cells import Cell, base

CELLS = (base("A", 0), base("B", 0), Cell(0, "B", "transfer", 3))
SMALL = ["--cuts", "3", "7", "--examples", "1", "2", "all", "--seeds", "0", "1", "--lrs", "1", "10", "3"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("probe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTTRANSFER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield trained_study(folder, CELLS)


@pytest.fixture(scope="module")
def features(study: Path) -> FeatureRequest:
    return open_network(study, "baseA", task="B")


def make_settings(**changes: Any) -> SweepSettings:
    values = {"cuts": (3,), "examples": (1, 2, 5), "seeds": (0, 1), "rates": (1.0, 10.0), "decays": (1e-4,)}
    return SweepSettings(**{**values, **changes})


def run_quietly(features: FeatureRequest, settings: SweepSettings) -> ProbeResults:
    return run_probe(features, settings, log=lambda text: None)


@pytest.mark.prints
def test_the_command_writes_its_files_and_prints_its_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["probe", str(study), "--task", "B", *SMALL, "--name", "first"]
    assert cli.run(command) == 0
    said = capsys.readouterr().out
    folder = study / "probe" / "first"
    assert {f.name for f in folder.iterdir()} == {
        "heads.csv", "probe.json", "accuracy.svg", "accuracy.pdf", "accuracy.png"
    }  # fmt: skip
    facts = json.loads((folder / "probe.json").read_text())
    with (folder / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2 * 9
    assert len(facts["means"]) == 2 * 3
    for mean in facts["means"]:
        chosen = [
            row
            for row in rows
            if row["chosen"] == "1" and (row["cut"], row["per_class"]) == (str(mean["cut"]), str(mean["per_class"]))
        ]
        assert [row["seed"] for row in chosen] == ["0", "1"]
        assert mean["top1"] == pytest.approx(sum(float(row["val_top1"]) for row in chosen) / 2, abs=1e-5)
        assert f"{100 * mean['top1']:.0f}" in said
    assert all((row["held_out_top1"] == "") == (row["per_class"] == "1") for row in rows)
    assert {row["rate"] for row in rows if row["per_class"] == "1" and row["chosen"] == "1"} == {"3.0"}, "the middle"
    assert facts["chance"] == pytest.approx(1 / 3)
    assert facts["study"]["frozen"]["3"][0] == "A3B"
    assert facts["images"]["store"] == open_network(study, "baseA").store.digest
    for line in ("chance 33 %", "Validation images choose nothing.", "Of 1 example none can be held out", "A3B"):
        assert line in said
    # The study's base+ is planned and not trained: nothing is known of its bases, which is said before any number.
    assert said.index("Whether the bases had finished learning is not known yet") < said.index("Softmax regressions")
    assert "chance" in "".join(ElementTree.parse(folder / "accuracy.svg").getroot().itertext())
    # The command that it prints is the same probe: the same bytes.
    before = {name: (folder / name).read_bytes() for name in ("heads.csv", "probe.json", "accuracy.svg")}
    again = next(line for line in said.splitlines() if line.startswith("again: fasttransfer probe"))
    assert again.split()[2:] == command
    assert cli.run(again.split()[2:]) == 0
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_a_head_does_not_depend_on_the_sweep_it_is_part_of(features: FeatureRequest) -> None:
    large = run_quietly(features, make_settings(cuts=(3, 6), examples=(1, 5, None), decays=(1e-5, 1e-4, 1e-3)))
    among = {(h.cut, h.per_class, h.seed, h.rate, h.decay): h[5:9] for h in large.heads}
    smaller = make_settings(cuts=(3,), examples=(5,), seeds=(1,), rates=(10.0,))
    for alone in (smaller, make_settings(cuts=(6,), examples=(None, 1))):
        for head in run_quietly(features, alone).heads:
            assert among[head.cut, head.per_class, head.seed, head.rate, head.decay] == head[5:9]


def test_validation_images_choose_nothing(features: FeatureRequest) -> None:
    before = run_quietly(features, make_settings())
    val = features.images["val"]
    turned = replace(features, images={**features.images, "val": replace(val, labels=val.labels[::-1].copy())})
    after = run_quietly(turned, make_settings())
    assert [h.val_top1 for h in before.heads] != [h.val_top1 for h in after.heads]
    assert [(h.held_out_top1, h.held_out_loss, h.chosen) for h in before.heads] == [
        (h.held_out_top1, h.held_out_loss, h.chosen) for h in after.heads
    ]


def test_the_choice() -> None:
    pairs = [(1.0, 0.0), (1.0, 0.1), (3.0, 0.0), (3.0, 0.1), (9.0, 0.0), (9.0, 0.1)]
    assert choose_head(pairs, [0.1, 0.5, 0.4, 0.5, 0.2, 0.5], [9.0, 3.0, 1.0, 2.0, 0.0, 2.0]) == 3
    assert choose_head(pairs, None, None) == 3  # the middle rate, and of two middle decays the larger


def test_features_tell_classes_apart(features: FeatureRequest) -> None:
    """The tiny study's images are noise around a colour: with all of them first features are enough."""
    found = run_quietly(features, make_settings(cuts=(1,), examples=(1, None), seeds=(0, 1, 2)))
    assert found.top1(1, None).value > 0.9
    assert found.top1(1, None).half is not None
    assert found.examples == {1: 1.0, None: 10.0}


def test_other_images_have_no_study_beside_them(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_images(tmp_path / "others", MANMADE[:2], train=4, val=3)
    command = ["probe", str(study), "--data", str(tmp_path / "others"), "--cuts", "6", "--seeds", "0", "--lrs", "3"]
    assert cli.run(command) == 0
    said = capsys.readouterr().out
    assert "one seed: no interval" in said
    assert "frozen" not in said
    facts = json.loads((study / "probe" / "baseA.s0-on-others" / "probe.json").read_text())
    assert facts["examples"] == [1, 2, "all"]  # of four images
    verdict = facts["study"].pop("verdict")
    assert "base+" in verdict and verdict.split(":")[0] in " ".join(said.split())
    assert facts["study"] == {"base": None, "frozen": {}}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--network", "C7A"], "has no network C7A"),
        (["--network", "B3A"], "B3A.s0 is planned, not done"),
        (["--cuts", "8"], "--cuts 8: choose among 1 to 7"),
        (["--cuts", "3", "3"], "--cuts: a value is given twice"),
        (["--examples", "11"], "has 10 training images: ask for 10 or fewer, or all"),
        (["--examples", "some"], "--examples some: whole numbers from 1 are needed, or all"),
        (["--examples", "0"], "--examples 0: whole numbers from 1 are needed, or all"),
        (["--lrs", "0"], "--lrs 0: positive numbers are needed"),
        (["--decays", "-1"], "--decays -1: numbers from 0 are needed"),
        (["--seeds", "-1"], "--seeds -1: whole numbers from 0 are needed"),
        (["--task", "C"], "task C: choose A or B"),
        (["--name", "../x"], "--name ../x: a name for a folder"),
    ],
)
def test_bad_options_are_errors_of_one_line(
    study: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["probe", str(study), *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


def test_features_too_large_for_memory(features: FeatureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 20_000)
    with pytest.raises(InputError, match=r"cut 3: 45 images x .* of memory are free: leave the cut out"):
        run_quietly(features, make_settings(examples=(None,)))
