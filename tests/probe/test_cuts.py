"""The cuts of a probe: of any network, by number or name, five by default; table and figure for any number of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from studies import trained_study

from fasttransfer import cli
from fasttransfer.cli.probe import choose_cuts
from fasttransfer.core.errors import InputError
from fasttransfer.features.network_features import FeatureRequest, open_network
from fasttransfer.probe.sweep import Head, ProbeResults, SweepSettings
from fasttransfer.report.probe import StudyReference, heads_csv, probe_accuracy, probe_table
from fasttransfer.report.stages import PAPER_STAGES, Stages
from fasttransfer.study.cells import base
from fasttransfer.study.records import Records

RESNET = Stages(("conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "fc"))
DEEP = Stages(("stem", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(8)), "fc"))


@pytest.mark.parametrize(
    ("stages", "cuts"),
    [
        (Stages(), (1, 3, 5, 6, 7)),
        (Stages(PAPER_STAGES), (1, 3, 5, 6, 7)),
        (RESNET, (1, 4, 6, 8, 9)),
        (DEEP, (1, 12, 22, 28, 33)),
        (Stages(("a", "b", "c")), (1, 2)),
        (Stages(("a", "b")), (1,)),
    ],
)
def test_default_cuts_spread_over_any_network(stages: Stages, cuts: tuple[int, ...]) -> None:
    assert choose_cuts((), stages) == cuts


def test_cuts_are_chosen_by_number_or_name() -> None:
    assert choose_cuts(("layer2.1", "1", "9"), RESNET) == (5, 1, 9)
    assert choose_cuts(("7",), Stages()) == (7,)


@pytest.mark.parametrize(
    ("word", "stages", "says"),
    [
        ("8", Stages(), r"--cuts 8: choose among 1 to 7$"),
        ("0", Stages(), r"--cuts 0: choose among 1 to 7$"),
        ("conv3", Stages(), r"--cuts conv3: choose among 1 to 7$"),
        ("fc", RESNET, r"--cuts fc: choose among 1 to 9, or by name: conv1, layer1\.0, .*layer4\.1$"),
    ],
)
def test_a_cut_that_the_network_lacks_is_refused(word: str, stages: Stages, says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose_cuts((word,), stages)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("probe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTTRANSFER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run = trained_study(folder, (base("A", 0), base("B", 0)))
        with Records(run / "study.db") as records:
            records.describe({"stages": list(PAPER_STAGES)}, {})
        yield run


def test_the_command_takes_names_and_shows_them(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--examples", "1", "2", "--seeds", "0", "--lrs", "1", "--name"]
    assert cli.run(["probe", str(study), "--cuts", "conv3", "7", *small, "named"]) == 0
    said = capsys.readouterr().out
    assert "3 conv3 " in said and "7 fc7 " in said and "--cuts conv3 7" in said
    assert cli.run(["probe", str(study), "--cuts", "3", "7", *small, "numbered"]) == 0
    named, numbered = (study / "probe" / name for name in ("named", "numbered"))
    assert (named / "heads.csv").read_bytes() == (numbered / "heads.csv").read_bytes()
    assert (named / "heads.csv").read_text().splitlines()[1].endswith(",conv3")
    means = json.loads((named / "probe.json").read_text())["means"]
    assert {(mean["cut"], mean["stage"]) for mean in means} == {(3, "conv3"), (7, "fc7")}
    assert cli.run(["probe", str(study), "--cuts", "fc7", "7"]) == 2
    assert "--cuts: a value is given twice" in capsys.readouterr().err


@pytest.fixture(scope="module")
def request_of_base(study: Path) -> FeatureRequest:
    return open_network(study, "baseA")


@pytest.mark.parametrize("count", [7, 33])
def test_any_number_of_cuts_is_shown(request_of_base: FeatureRequest, count: int) -> None:
    cuts, examples = tuple(range(1, count + 1)), (1, 2, 5, 10, 25, None)
    settings = SweepSettings(cuts, examples, (0, 1), (1.0,), (1e-4,))
    heads = [
        Head(cut, k, seed, 1.0, 1e-4, 0.5, 1.0, 0.3 + 0.01 * cut + 0.02 * seed, 1.0, True)
        for cut in cuts
        for k in examples
        for seed in (0, 1)
    ]
    volumes = {k: float(k or 50) for k in examples}
    probed = ProbeResults(request_of_base, settings, tuple(heads), volumes, torch.float32)
    frozen = {cut: (f"A{cut}B", 0.4) for cut in cuts}
    beside = StudyReference(("baseA", 0.6), frozen, stages=DEEP if count == 33 else Stages())
    file = io.StringIO()
    Console(file=file, width=80).print(probe_table(probed, beside))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert any(line.split()[:2] == ["33", "layer4.7"] for line in lines) == (count == 33)
    figure = probe_accuracy(probed, beside)
    curves = [line for line in figure.axes[0].lines if line.get_linewidth() == 1.4]
    assert len(curves) == len({line.get_color() for line in curves}) == count
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == ("cut 1 stem" if count == 33 else "cut 1") and len(labels) <= 15
    assert labels[-2] == ("cut 33 layer4.7" if count == 33 else "cut 7")
    assert heads_csv(probed, beside.stages).splitlines()[-1].endswith("layer4.7" if count == 33 else ",")
