"""Commands that do not compute start at once: they do not import PyTorch, which takes a second and half a gigabyte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from studies import MANMADE, NATURAL, draw_images

from fasttransfer.pipelines.layouts import list_images
from fasttransfer.pipelines.prepare import prepare_into

HEAVY = ("torch", "torchvision", "timm", "nvidia.dali", "matplotlib")

PROGRAM = """
import json, sys
from fasttransfer import cli
code = cli.run(json.loads(sys.argv[1]))
print(json.dumps([code, [name for name in json.loads(sys.argv[2]) if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images`, an ImageFolder, and `store`, the same images prepared."""
    folder = tmp_path_factory.mktemp("start-up")
    source = draw_images(folder / "images", NATURAL + MANMADE, train=2, val=1)
    prepare_into(list_images(source), folder / "store", size=16, log=lambda text: None)
    return folder


@pytest.mark.parametrize(
    ("command", "modules"),
    [
        ("--help", (*HEAVY, "numpy", "PIL")),
        ("grid --help", (*HEAVY, "numpy", "PIL")),
        ("splits list", HEAVY),
        ("splits verify", HEAVY),
        ("splits show random:7", HEAVY),
        ("splits export random:0 --data {images}/images", HEAVY),
        ("data inspect {images}/images", HEAVY),
        ("data inspect {images}/store", HEAVY),
        ("data verify {images}/store", HEAVY),
    ],
)
def test_commands_that_only_look_do_not_import_pytorch(command: str, modules: tuple[str, ...], images: Path) -> None:
    arguments = [word.format(images=images) for word in command.split()]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments), json.dumps(modules)],
        capture_output=True,
        text=True,
        cwd=images,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [0, []], ran.stderr
