"""Terminals, pipes and disks that do not take what a command prints."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from fasttransfer import cli
from fasttransfer.cli import output
from fasttransfer.training import grid

FULL = Path("/dev/full")


@pytest.fixture
def closed_pipe() -> Iterator[io.TextIOWrapper]:
    """A pipe whose reader is gone, as that of `… | head` after ten lines."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        yield pipe


def test_a_closed_pipe_ends_a_command_quietly_and_well(
    closed_pipe: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    assert cli.run(["splits", "show", "random:0"]) == 0
    assert capsys.readouterr().err == ""


def test_a_command_that_goes_on_without_a_reader_says_so(
    closed_pipe: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []

    def prints_three_lines(*_: object, console: Console, **__: object) -> bool:
        for number in range(3):
            console.print(str(number))
            lines.append(number)
        return True

    monkeypatch.setattr(grid, "run", prints_three_lines)
    monkeypatch.setattr(output, "_PATIENCE", -1.0)
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    assert cli.run(["grid"]) == 0
    assert lines == [0, 1, 2]
    assert capsys.readouterr().err.count("its reader is gone): the command goes on without output") == 1


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", [("splits", "list"), ("splits", "list", "--help")], ids=" ".join)
def test_output_to_a_full_disk_is_missed_by_exit_code_and_sentence(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.run(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("fasttransfer: cannot print any more (no space left on device)") and error.count("\n") == 1


def test_a_broken_pipe_that_is_not_the_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> bool:
        raise BrokenPipeError

    monkeypatch.setattr(grid, "run", broken)
    with pytest.raises(BrokenPipeError):
        cli.run(["grid"])


def named_classes(folder: Path, names: Sequence[bytes]) -> str:
    """Return a folder of classes of two files each, by the bytes of their names."""
    for name in names:
        one = os.fsencode(folder) + b"/" + name
        os.makedirs(one)
        for number in range(2):
            Path(os.fsdecode(one), f"{number}.png").write_bytes(b"")
    return str(folder)


def test_an_ascii_terminal_shows_everything_in_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = named_classes(tmp_path / "images", [b"cat", "\N{CJK UNIFIED IDEOGRAPH-732B}".encode(), b"dog", b"cow"])
    shown = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    for words in (["grid", "--help"], ["data", "prepare"], ["advise", "paper:random"]):
        assert cli.run(words) in (0, 2)
    assert cli.run(["splits", "show", "random:0", "--data", images]) == 0
    assert " \\u732b " in shown.getvalue().decode("ascii")


def test_a_terminal_of_no_width_shows_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert cli.run(["splits", "list"]) == 0
    assert "natural-manmade" in capsys.readouterr().out


def test_names_that_look_like_markup_or_are_not_utf_8_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [b"[b]", b"[red]", b":cat:", b"$x$", b"caf\xe9", b"\x1b[31mred"]
    images = named_classes(tmp_path / "images", names)
    assert cli.run(["splits", "show", "random:0", "--data", images]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in ("[b]", "[red]", ":cat:", "$x$", r"caf\xe9", r"\x1b[31mred"))
    assert cli.run(["splits", "export", "random:0", "--data", images]) == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out)
    assert cli.run(["splits", "show", str(tmp_path / "mine.toml"), "--data", images]) == 0
    assert capsys.readouterr().out == shown
    assert cli.run(["report", f"{tmp_path}/[/x]{os.fsdecode(bytes([0xE9]))}"]) == 2
    assert rf"{tmp_path}/[/x]\xe9: no study here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("data", "prepare"), "SOURCE STORE"),
        (("cache", "export"), "ENTRY OUT"),
        (("report",), "[STUDY]"),
        (("compare",), "[STUDIES"),
        (("networks", "show"), "NETWORK"),
    ],
)
def test_positional_arguments_have_names(
    words: tuple[str, ...], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*words, "--help"]) == 0
    usage = capsys.readouterr().out.splitlines()[0]
    assert names in usage and "PATH PATH" not in usage


def test_a_missing_argument_is_called_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "prepare", "images"]) == 2
    error = capsys.readouterr().err
    assert "STORE" in error and "SOURCE" not in error and "command.store" not in error


def test_a_forbidden_file_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cache = os.environ["FASTTRANSFER_CACHE"]

    def forbidden(*_: object, **__: object) -> bool:
        raise PermissionError(13, "Permission denied", f"{cache}/stores")

    monkeypatch.setattr(grid, "run", forbidden)
    assert cli.run(["grid"]) == 2
    remedy = "see to its permissions or name another folder for the cache with FASTTRANSFER_CACHE"
    assert capsys.readouterr().err == f"fasttransfer: {cache}/stores: permission denied: {remedy}\n"
