"""The words for cuts, with and without names."""

from __future__ import annotations

import pytest

from fasttransfer.report.stages import PAPER_STAGES, Stages, short_names

RESNET = Stages(("conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc"))


def test_a_named_cut_has_its_name_in_every_phrase() -> None:
    assert RESNET.first(5) == "the first 5 stages (up to layer2.1)"
    assert RESNET.first(1) == "the first stage (conv1)"
    assert RESNET.one(5) == "stage 5 (layer2.1)"
    assert RESNET.label(5) == "5 layer2.1"
    assert RESNET.at(5) == "n = 5 (layer2.1)"
    assert RESNET.at(1, 2, 3, 5) == "n = 1 to 3 (conv1 to layer1.1), 5 (layer2.1)"
    assert RESNET.label(0) == "0" and RESNET.at(0) == "n = 0"


def test_without_names_cuts_have_their_numbers_and_are_the_papers() -> None:
    unnamed = Stages.of({})
    assert unnamed.first(4) == "the first 4 layers" and unnamed.first(1) == "the first layer"
    assert (unnamed.one(4), unnamed.label(4), unnamed.at(1, 2, 4)) == ("layer 4", "4", "n = 1, 2, 4")
    assert unnamed.cuts == 7 and unnamed.network == Stages.of({"stages": list(PAPER_STAGES)}).network
    assert unnamed.network != RESNET.network and RESNET.cuts == 5


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (("conv_proj", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1", "heads.head"),
         ("conv_proj", "encoder_layer_0", "encoder_layer_1", "head")),
        (("layer1.0", "layer1.1", "layer2.0", "layer2.1"), ("layer1.0", "layer1.1", "layer2.0", "layer2.1")),
        (("features.0", "features.1.0", "features.1.1"), ("features.0", "features.1.0", "features.1.1")),
        (("a.block.x", "b.block.x", "x"), ("a.block.x", "b.block.x", "x")),
        (("stages.0.blocks.1", "stages.1.blocks.1", "head"), ("stages.0.blocks.1", "stages.1.blocks.1", "head")),
    ],
)  # fmt: skip
def test_short_names_stay_different(names: tuple[str, ...], short: tuple[str, ...]) -> None:
    assert short_names(names) == short
    assert len(set(short)) == len(names)
