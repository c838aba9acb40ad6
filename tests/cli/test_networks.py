"""`fasttransfer networks`, and the options of grid that name a network, with what is wrong in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import tiny_choices

from fasttransfer import cli


def test_networks_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["networks"]) == 0
    names = capsys.readouterr().out.split()
    assert {"caffenet", "caffenet-mini", "torchvision:resnet18", "torchvision:vit_b_16"} <= set(names)
    assert cli.run(["networks", "list", "--containing", "resnet1"]) == 0
    assert set(capsys.readouterr().out.split()) < set(names)
    assert cli.run(["networks", "show", "torchvision:resnet18", "--size", "64", "--cuts", "layer2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:7] == ["1", "layer2", "128", "x", "8", "x", "8"] and rows[2][:2] == ["2", "fc"]
    assert cli.run(["networks", "show", "caffenet"]) == 0
    assert "724 million multiply-adds" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--network", "torchvision:resnet17"], "the nearest names are torchvision:resnet18"),
        (["--network", "resnet18"], "network 'resnet18' is unknown: choose torchvision:resnet18"),
        (["--network", "torchvision:resnet18", "--cuts", "layer9"], "there is no cut 'layer9': choose from conv1"),
        (["--network", "torchvision:resnet18", "--layers", "10"], "--layers 10: choose among 1 to 9"),
        (["--network", "torchvision:alexnet", "--size", "32"], "images of 64 x 64 work"),
        (["--network", "caffenet-mini", "--size", "64"], "caffenet-mini reads images of 58 pixels"),
        (["--network", "caffenet-mini", "--cuts", "conv1"], "choose among them with --layers"),
        (["--network", "caffenet-mini", "--weights", "x.safetensors"], "caffenet-mini takes none"),
        (["--network", "torchvision:resnet18", "--weights", "x.safetensors"], "x.safetensors: no such file"),
        (
            ["--network", "torchvision:resnet18", "--weights", "LATEST"],
            "no weights 'LATEST' of resnet18: choose IMAGENET",
        ),
        (["--size", "64"], "--size: is for networks of a library"),
        (["--treatments", "pretrained"], "name them with --weights"),
        (["--network", "torchvision:resnet18", "--treatments", "random-he"], "starts from the library's own values"),
        (["--recipe", "small"], "recipe small is for any network: name one with --network"),
        (["--network", "torchvision:resnet18", "--dropout", "0.1"], "torchvision:resnet18 has its own: leave it out"),
    ],
)
def test_a_network_that_cannot_be_trained_so_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    data, out = str(tiny_choices(tmp_path).data), tmp_path / "run"
    assert cli.run(["grid", "--data", data, "--out", str(out), "--split", "random:0", *options]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert sentence in told and told.count("fasttransfer:") == 1
    assert not out.exists()
