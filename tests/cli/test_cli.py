"""The command line: manual pages, and one sentence with exit code 2 for bad input."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from PIL import Image
from studies import MANMADE, NATURAL, draw_images, tiny_choices, tiny_recipe

from fasttransfer import cli
from fasttransfer.cli.commands import Commands
from fasttransfer.study import images as study_images
from fasttransfer.training import grid, study_plan


def commands_of(union: object, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the words of each command of a union, and whether it has commands of its own."""
    for member in get_args(union):
        kind, chosen = get_args(member) or (member, None)
        name = chosen.name if chosen else kind.__name__.lower()
        words, own = (*before, name), get_type_hints(kind, include_extras=True).get("command")
        yield words, own is not None
        yield from commands_of(own, words)


GROUPS = {words: is_group for words, is_group in commands_of(Commands)}
COMMANDS = [words for words, is_group in GROUPS.items() if not is_group]


def run(*arguments: object) -> int:
    return cli.run([str(a) for a in arguments])


def manual_page(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(*words, "--help") == 0
    return capsys.readouterr().out


def test_all_commands_are_found() -> None:
    """The tests below have a case per command: without this one, an error in `commands_of` could leave them none."""
    assert {words[0] for words in GROUPS} >= {"grid", "report", "probe", "splits", "data", "cache", "bench", "info"}
    assert {words[0] for words, is_group in GROUPS.items() if is_group} == {
        "networks",
        "splits",
        "data",
        "cache",
        "bench",
    }
    assert {("base",), ("cache", "prune"), ("bench", "step"), ("data", "builtin")} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_a_manual_page_with_an_example_of_itself(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    page = manual_page(command, capsys)
    called = f"fasttransfer {' '.join(command)}"
    assert f"usage: {called} " in page
    about, example, text = page.partition("For example")
    assert example and len(about.split()) > 10
    assert called in text


@pytest.mark.parametrize("group", [words for words, is_group in GROUPS.items() if is_group], ids=" ".join)
def test_every_group_of_commands_lists_them_all(group: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    listed = manual_page(group, capsys)
    inside = [words[-1] for words in COMMANDS if words[:-1] == group]
    assert len(inside) > 1
    for name in inside:
        assert re.search(rf"^\W*{name}\s+\w", listed, re.MULTILINE), name


def test_the_program_starts_as_a_module_and_says_what_it_offers() -> None:
    done = subprocess.run([sys.executable, "-m", "fasttransfer", "--help"], capture_output=True, text=True, check=True)
    for words in GROUPS:
        if len(words) == 1:
            assert re.search(rf"^\W*{words[0]}\s+\w", done.stdout, re.MULTILINE), words


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "images", NATURAL + MANMADE)


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    assert error.startswith("fasttransfer: ")
    assert "\n" not in error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (("--data", "/nowhere"), "/nowhere: does not exist", "name a folder of images or an uncompressed tar"),
        (("--layers", "0"), "--layers 0:", "choose among 1 to 7"),
        (("--layers", "8"), "--layers 8:", "choose among 1 to 7"),
        (("--split", "thirds"), "split 'thirds': not known", "natural-manmade, random:SEED (as random:0), or the path"),
        (("--split", "random:x"), "split 'random:x':", "a whole number from 0 to 4294967295, as in random:0"),
        (("--split", "none.toml"), "none.toml: no such split file", 'write one (name = "mine", A = ['),
        (
            ("--recipe", "quick"),
            "recipe 'quick' is unknown",
            "choose one of caffe, fast, large, large-adamw, mini, small, small-adamw, or a .toml file",
        ),
        (("--device", "tpu"), "--device tpu:", "choose cpu or cuda"),
        (("--precision", "int4"), "--precision int4:", "choose fp32 or bf16"),
        (("--treatments", "best"), "--treatments best:", "choose among selffer, selffer+, transfer, transfer+, random"),
        (("--targets", "C"), "--targets C:", "choose among A, B"),
        (("--batch", "0"), "batch is 0", "at least 1 is needed"),
        (("--steps", "0"), "steps is 0", "at least 1 is needed"),
        (("--epochs", "1", "--steps", "2"), "--epochs and --steps:", "give one of them"),
        (("--classes", "1000"), "1000 classes per task: task A of natural-manmade has 16", "say at most that many"),
    ],
)
def test_bad_options_of_grid_are_one_sentence_of_what_is_wrong_and_what_to_do(
    arguments: tuple[str, ...], what: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("grid", *arguments, "--out", out) == 2
    wrong, found, todo = one_sentence(capsys).partition(what)
    assert found and remedy in todo, (wrong, todo)
    assert not out.exists()


def test_a_gpu_that_is_not_there_is_an_input_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run("grid", "--device", "cuda", "--out", tmp_path / "run") == 2
    error = one_sentence(capsys)
    assert "--device cuda: PyTorch sees no CUDA device" in error and "choose --device cpu" in error


@pytest.mark.parametrize("words", [("--bad-pictures", "skip"), ("--bad-pictures=skip",)])
def test_an_option_by_its_old_name_is_the_option(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    (images / "train" / NATURAL[0] / "text.jpg").write_text("not an image")
    assert run("data", "prepare", images, tmp_path / "store", "--size", "32", *words) == 0
    assert "store: " in capsys.readouterr().out


def test_bad_images_are_one_sentence_and_leave_nothing(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ("--data", images, "--recipe", tiny_recipe(tmp_path), "--out", out)
    extra = images / "train" / NATURAL[0] / "text.jpg"
    extra.write_text("not an image")
    assert run("grid", *options) == 2
    error = one_sentence(capsys)
    assert f"train/{NATURAL[0]}/text.jpg (not an image of a known format)" in error
    assert "repair or remove them, or leave them out with --bad-images skip" in error
    extra.unlink()

    (images / "train" / "n01491361").mkdir()
    assert run("grid", *options) == 2
    error = one_sentence(capsys)
    assert "train/ no image (" in error and "in class n01491361: add some or remove the folder" in error
    (images / "train" / "n01491361").rmdir()

    assert run("grid", *options, "--split", "natural-manmade", "--classes", "9") == 2
    assert "9 classes per task: task A of natural-manmade has 3: say at most that many" in one_sentence(capsys)
    assert not out.exists()


def test_classes_that_the_table_lacks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strangers = draw_images(tmp_path / "strangers", ("gizmo", "widget", "doodad", "gadget"), train=2, val=1)
    assert run("grid", "--data", strangers, "--out", tmp_path / "run") == 2
    error = one_sentence(capsys)
    assert "none of the 4 classes (doodad, gadget, gizmo and 1 more)" in error
    assert all(remedy in error for remedy in ("write a split file", "--split FILE.toml", "--split random:0"))
    some = draw_images(tmp_path / "some", (*NATURAL, *MANMADE, "gizmo"), train=2, val=1)
    assert run("grid", "--data", some, "--out", tmp_path / "run") == 2
    error = one_sentence(capsys)
    assert "natural-manmade: does not know gizmo:" in error
    assert all(remedy in error for remedy in ("write a split file", "--split FILE.toml", "--split random:0"))
    assert not (tmp_path / "run").exists()


def test_one_class_alone_is_refused_with_how_many_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one" / "cat").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "one" / "cat" / "a.png")
    assert run("grid", "--data", tmp_path / "one", "--out", tmp_path / "run") == 2
    error = one_sentence(capsys)
    assert f"{tmp_path / 'one'}: holds one class only (cat)" in error
    assert "at least four, two per task" in error
    assert not (tmp_path / "run").exists()


def test_a_grid_and_its_report_from_the_command_line(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ("grid", "--data", images, "--recipe", tiny_recipe(tmp_path), "--out", out, "--layers", 3, 5)
    assert run(*command, "--dry-run") == 0
    assert "A3B+" in capsys.readouterr().out
    assert not out.exists()
    assert run(*command) == 0
    assert "co-ad" in capsys.readouterr().out
    assert run(*command, "--batch", 3) == 2
    assert "recipe.batch: 8 in the study, 3 in the command" in one_sentence(capsys)
    (out / "report" / "index.html").unlink()
    assert run("report", out, "--score", "best10") == 0
    assert (out / "report" / "index.html").exists()
    assert run("report", tmp_path) == 2
    error = one_sentence(capsys)
    assert f"{tmp_path}: no study here" in error and "name a --out folder of grid" in error


def test_splits_commands(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("splits", "verify") == 0
    assert capsys.readouterr().out.count("same") == 10
    assert run("splits", "list") == 0
    assert "551" in capsys.readouterr().out
    assert run("splits", "show", "natural-manmade", "--data", images) == 0
    assert "tench" in capsys.readouterr().out
    assert run("splits", "export", "random:5", "--data", images) == 0
    file = tmp_path / "mine.toml"
    file.write_text(capsys.readouterr().out)
    ours = study_plan.make_plan(tiny_choices(tmp_path, split=str(file))).classes
    assert ours == study_plan.make_plan(tiny_choices(tmp_path, split="random:5")).classes
    assert run("splits", "export", "random:0", "--validation-list", "B") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ILSVRC2012_val_000000")
    assert len(lines) == 25_000


def test_data_inspect_and_info(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "inspect", images) == 0
    text = capsys.readouterr().out
    assert "60 images, 10 to 10 per class" in text
    assert "JPEG" in text
    assert run("data", "inspect", images, "--sheet", tmp_path / "sheet.png") == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000 and "contact sheet" in capsys.readouterr().out
    assert run("data", "inspect", tmp_path / "nowhere", "--sheet", tmp_path / "sheet.txt") == 2
    assert "a contact sheet is a .png or a .jpg" in one_sentence(capsys)
    assert not (tmp_path / "sheet.txt").exists()
    assert run("info") == 0
    found = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert torch.__version__.split("+")[0] in found["torch"] and "fasttransfer" in found


def test_data_inspect_knows_the_built_in_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study_images, "BUILTIN_TRAIN", 3)
    monkeypatch.setattr(study_images, "BUILTIN_VAL", 2)
    assert run("data", "inspect", "builtin") == 0
    assert "96 images, 3 to 3 per class" in capsys.readouterr().out


def test_data_prepare_and_verify(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    command = ("data", "prepare", images, store, "--device", "cpu")
    assert run(*command, "--recipe", tiny_recipe(tmp_path), "--kind", "jpeg") == 0
    said = capsys.readouterr().out
    assert "32 x 32 pixels, for recipe tiny" in said and f"store: {store}" in said
    assert run(*command, "--size", 32, "--kind", "jpeg") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run(*command) == 2
    assert "another store is here (jpeg, 32 x 32, of" in one_sentence(capsys)
    assert run(*command, "--size", 32, "--recipe", "mini") == 2
    assert "--size 32 and --recipe mini" in one_sentence(capsys)
    assert run("data", "prepare", images, images / "store", "--size", 8) == 2
    assert "lies inside the images" in one_sentence(capsys)
    assert run("data", "inspect", store) == 0
    text = capsys.readouterr().out
    size = sum(path.stat().st_size for path in store.iterdir()) / 1e6
    assert f"jpeg, {size:.1f} MB on disk" in text and "fit: stretch" in text and "pillow" in text
    assert run("data", "verify", store) == 0
    assert "images are as they were written" in capsys.readouterr().out
    shard = store / "train-0000.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert run("data", "verify", store) == 2
    assert "train-0000.tar with train images 0 to" in one_sentence(capsys)
    assert run("data", "verify", tmp_path) == 2
    assert "is not a prepared store" in one_sentence(capsys)


def test_data_prepare_takes_the_recipe_that_grid_takes(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("data", "prepare", images, tmp_path / "paper's", "--device", "cpu") == 0
    assert "256 x 256 pixels, for recipe caffe" in capsys.readouterr().out  # the folders have ILSVRC12's names
    (images / "train" / NATURAL[0]).rename(images / "train" / "tench")
    (images / "val" / NATURAL[0]).rename(images / "val" / "tench")
    assert run("data", "prepare", images, tmp_path / "small", "--device", "cpu") == 0
    assert "64 x 64 pixels, for recipe mini" in capsys.readouterr().out


def test_a_bug_keeps_its_stack_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(grid, "run", broken)
    with pytest.raises(ZeroDivisionError):
        run("grid", "--out", tmp_path / "run")
