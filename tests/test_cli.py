"""The command line: manual pages, and bad input told in one sentence with exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from studies import MANMADE, NATURAL, draw_pictures, tiny_choices, tiny_recipe

from fasttransfer import cli, grid, study_plan

COMMANDS = [
    ("grid",), ("report",), ("advise",), ("compare",),
    ("splits", "list"), ("splits", "show"), ("splits", "export"), ("splits", "verify"),
    ("data", "inspect"), ("data", "prepare"), ("data", "verify"), ("data", "builtin"), ("info",),
]  # fmt: skip


def run(*arguments: object) -> int:
    return cli.run([str(a) for a in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_manual_page_with_an_example(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*command, "--help")
    assert ended.value.code == 0
    page = capsys.readouterr().out
    assert f"fasttransfer {' '.join(command)}" in page
    assert "For example" in page


def test_the_program_starts_as_a_module_and_says_what_it_offers() -> None:
    done = subprocess.run([sys.executable, "-m", "fasttransfer", "--help"], capture_output=True, text=True, check=True)
    for word in ("grid", "report", "advise", "compare", "splits", "data", "info"):
        assert word in done.stdout


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "pictures", NATURAL + MANMADE)


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    assert error.startswith("fasttransfer: ")
    assert "\n" not in error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--data", "/nowhere"), "/nowhere"),
        (("--layers", "0"), "--layers 0"),
        (("--layers", "8"), "--layers 8"),
        (("--split", "thirds"), "thirds"),
        (("--split", "random:x"), "random:x"),
        (("--split", "none.toml"), "none.toml"),
        (("--recipe", "quick"), "quick"),
        (("--device", "tpu"), "tpu"),
        (("--precision", "int4"), "int4"),
        (("--treatments", "best"), "best"),
        (("--targets", "C"), "C"),
        (("--batch", "0"), "batch"),
        (("--steps", "0"), "steps"),
        (("--epochs", "1", "--steps", "2"), "--epochs"),
        (("--classes", "1000"), "1000"),
    ],
)
def test_bad_options_of_grid_are_one_sentence(
    arguments: tuple[str, ...], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("grid", *arguments, "--out", out) == 2
    assert word in one_sentence(capsys)
    assert not out.exists()


def test_a_gpu_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run("grid", "--device", "cuda", "--out", tmp_path / "run") == 2
    assert "no CUDA device" in one_sentence(capsys)


def test_bad_pictures_are_one_sentence_and_leave_nothing(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ("--data", pictures, "--recipe", tiny_recipe(tmp_path), "--out", out)
    extra = pictures / "train" / NATURAL[0] / "text.jpg"
    extra.write_text("not a picture")
    assert run("grid", *options) == 2
    assert "text.jpg" in one_sentence(capsys)
    extra.unlink()

    (pictures / "train" / "n01491361").mkdir()
    assert run("grid", *options) == 2
    assert "n01491361" in one_sentence(capsys)
    (pictures / "train" / "n01491361").rmdir()

    assert run("grid", *options, "--split", "natural-manmade", "--classes", "9") == 2
    assert "9" in one_sentence(capsys)
    assert not out.exists()


def test_classes_the_table_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strangers = draw_pictures(tmp_path / "strangers", ("gizmo", "widget", "doodad", "gadget"), train=2, val=1)
    assert run("grid", "--data", strangers, "--out", tmp_path / "run") == 2
    assert ".toml" in one_sentence(capsys)  # says how to write a split file
    some = draw_pictures(tmp_path / "some", (*NATURAL, *MANMADE, "gizmo"), train=2, val=1)
    assert run("grid", "--data", some, "--out", tmp_path / "run") == 2
    error = one_sentence(capsys)
    assert "gizmo" in error
    assert ".toml" in error


def test_one_class_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one" / "cat").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "one" / "cat" / "a.png")
    assert run("grid", "--data", tmp_path / "one", "--out", tmp_path / "run") == 2
    one_sentence(capsys)


def test_a_grid_and_its_report_from_the_command_line(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ("grid", "--data", pictures, "--recipe", tiny_recipe(tmp_path), "--out", out, "--layers", 3, 5)
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
    assert "no study here" in one_sentence(capsys)


def test_splits_commands(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("splits", "verify") == 0
    assert capsys.readouterr().out.count("same") == 10
    assert run("splits", "list") == 0
    assert "551" in capsys.readouterr().out
    assert run("splits", "show", "natural-manmade", "--data", pictures) == 0
    assert "tench" in capsys.readouterr().out
    assert run("splits", "export", "random:5", "--data", pictures) == 0
    file = tmp_path / "mine.toml"
    file.write_text(capsys.readouterr().out)
    ours = study_plan.make_plan(tiny_choices(tmp_path, split=str(file))).classes
    assert ours == study_plan.make_plan(tiny_choices(tmp_path, split="random:5")).classes
    assert run("splits", "export", "random:0", "--validation-list", "B") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ILSVRC2012_val_000000")
    assert len(lines) == 25_000


def test_data_inspect_and_info(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "inspect", pictures) == 0
    text = capsys.readouterr().out
    assert "60 pictures, 10 to 10 a class" in text
    assert "JPEG" in text
    assert run("data", "inspect", pictures, "--sheet", tmp_path / "sheet.png") == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000 and "contact sheet" in capsys.readouterr().out
    assert run("data", "inspect", tmp_path / "nowhere", "--sheet", tmp_path / "sheet.txt") == 2
    assert "a contact sheet is a .png or a .jpg" in capsys.readouterr().err
    assert run("info") == 0
    assert "torch" in capsys.readouterr().out


def test_data_inspect_knows_the_built_in_pictures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grid, "BUILTIN_TRAIN", 3)
    monkeypatch.setattr(grid, "BUILTIN_VAL", 2)
    assert run("data", "inspect", "builtin") == 0
    assert "96 pictures, 3 to 3 a class" in capsys.readouterr().out


def test_data_prepare_and_verify(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    command = ("data", "prepare", pictures, store, "--device", "cpu")
    assert run(*command, "--recipe", tiny_recipe(tmp_path), "--kind", "jpeg") == 0
    said = capsys.readouterr().out
    assert "32 x 32 pixels, for recipe tiny" in said and f"store: {store}" in said
    assert run(*command, "--size", 32, "--kind", "jpeg") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run(*command) == 2
    assert "another store is here (jpeg, 32 x 32, of" in one_sentence(capsys)
    assert run(*command, "--size", 32, "--recipe", "mini") == 2
    assert "--size 32 and --recipe mini" in one_sentence(capsys)
    assert run("data", "prepare", pictures, pictures / "store", "--size", 8) == 2
    assert "lies inside the pictures" in one_sentence(capsys)
    assert run("data", "verify", store) == 0
    assert "pictures are as they were written" in capsys.readouterr().out
    shard = store / "train-0000.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert run("data", "verify", store) == 2
    assert "train-0000.tar with train pictures 0 to" in one_sentence(capsys)
    assert run("data", "verify", tmp_path) == 2
    assert "is not a prepared store" in one_sentence(capsys)


def test_data_prepare_takes_the_recipe_that_grid_takes(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("data", "prepare", pictures, tmp_path / "paper's", "--device", "cpu") == 0
    assert "256 x 256 pixels, for recipe caffe" in capsys.readouterr().out  # the folders have ILSVRC12's names
    (pictures / "train" / NATURAL[0]).rename(pictures / "train" / "tench")
    (pictures / "val" / NATURAL[0]).rename(pictures / "val" / "tench")
    assert run("data", "prepare", pictures, tmp_path / "small", "--device", "cpu") == 0
    assert "64 x 64 pixels, for recipe mini" in capsys.readouterr().out


def test_a_bug_keeps_its_stack_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(grid, "run", broken)
    with pytest.raises(ZeroDivisionError):
        run("grid", "--out", tmp_path / "run")
