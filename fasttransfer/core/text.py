"""Names of files as text: some hold bytes that are not UTF-8, or control characters, which no page or terminal takes.

Python holds such a byte as a lone surrogate character (PEP 383), which no encoder accepts.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from typing import Any

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ESCAPED = re.compile(rb"\\x(5c|[89a-f][0-9a-f])")
# Characters of our own sentences and tables, for a terminal that has ASCII alone.
_ASCII = str.maketrans(
    {"\N{MINUS SIGN}": "-", "–": "-", "±": "+-", "×": "x", "…": "...", "’": "'", "─": "-", "│": "|"}
    | dict.fromkeys("╭╮╰╯━", "-")
)

ENCODE_ERRORS = "fasttransfer.escape"
"""The name of the handler of errors that writes what an encoding lacks as an escape, as `errors` of open and encode."""


def printable(text: str) -> str:
    r"""Return text as a page, a figure and a terminal take it.

    A byte of a file's name that is not UTF-8, and a control character other than tab and newline, becomes its escape,
    as in "caf\xe9".
    """
    return _UNPRINTABLE.sub(lambda match: _escape(match[0]), text)


def escape_name(name: str) -> str:
    r"""Return the name of a file as valid Unicode, different for different names: "caf\xe9" for a byte 0xE9.

    A backslash that stands before what would look like an escape is escaped itself.
    """
    as_bytes = name.encode("utf-8", "surrogateescape")
    return _ESCAPED.sub(rb"\\x5cx\1", as_bytes).decode("utf-8", "backslashreplace")


def unescape_name(text: str) -> str:
    """Return the name of the file that `escape_name` made `text` of."""
    as_bytes = text.encode("utf-8", "surrogateescape")
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), as_bytes))


def json_text(value: Any) -> str:
    """Return plain values as JSON that any reader takes, indented, with the escapes of `printable` in strings."""
    return _UNPRINTABLE.sub(lambda match: f"\\{_escape(match[0])}", json.dumps(value, indent=1, ensure_ascii=False))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    replaced = (
        known if (known := character.translate(_ASCII)).isascii() else _escape(character)
        for character in error.object[error.start : error.end]
    )
    return "".join(replaced), error.end


codecs.register_error(ENCODE_ERRORS, _replace_unencodable)
