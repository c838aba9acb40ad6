"""Names of files that are not UTF-8, and control characters, as text for people and for files that are read back."""

from __future__ import annotations

import json
import os

import pytest

from fasttransfer.core.text import ENCODE_ERRORS, escape_name, json_text, printable, unescape_name
from fasttransfer.core.toml import build_from_table, to_plain
from fasttransfer.study.cells import Cell

STRANGE = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "café",
        STRANGE,
        r"caf\xe9",
        r"a\x5cxe9",
        "\\" + os.fsdecode(b"\xe9"),
        r"\x5c",
        r"\x41",
        "\x1b[31m",
        "猫",
    ],
)
def test_an_escaped_name_is_valid_text_that_leads_back_to_the_name(name: str) -> None:
    assert unescape_name(escape_name(name).encode().decode()) == name


def test_names_that_differ_by_a_byte_stay_different() -> None:
    names = [STRANGE, os.fsdecode(b"caf\xe8"), r"caf\xe9", "café"]
    assert len({escape_name(name) for name in names}) == 4
    assert escape_name(STRANGE) == r"caf\xe9" and escape_name("café") == "café"


def test_printable_text_has_escapes_for_bytes_and_control_characters_alone() -> None:
    assert printable(f"{STRANGE}\x1b[31m\x85") == r"caf\xe9\x1b[31m\x85"
    assert printable("a\tb\nc − 猫 😀") == "a\tb\nc − 猫 😀"


def test_an_ascii_terminal_gets_like_signs_and_escapes() -> None:
    assert f"1 − 2 ± 3 {STRANGE} 猫".encode("ascii", ENCODE_ERRORS) == rb"1 - 2 +- 3 caf\xe9 \u732b"


def test_json_of_a_strange_name_is_read_by_any_reader() -> None:
    text = json_text({STRANGE: ["😀", "\x1b"]})
    assert json.loads(text.encode().decode()) == {r"caf\xe9": ["😀", "\x1b"]}


def test_a_strange_name_comes_back_from_toml() -> None:
    table = to_plain({"seed": 0, "target": STRANGE, "treatment": "transfer", "n": 1})
    table["target"].encode()
    assert build_from_table(Cell, table, "here").target == STRANGE
