"""Catch libjpeg's warnings about a JPEG, which it writes to stderr, where they name no file.

libjpeg decodes a damaged JPEG to the end and warns: it fills what is lost with grey or shifts the rest. Only the first
warning of an image is written. Torchvision does not pass it on; Pillow drops it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

# Pixels are lost. A marker D0 to D7 separates intervals of one image: bytes left over before it are missing elsewhere.
_DAMAGE = re.compile(
    "premature end|bad Huffman code|bad arithmetic code|instead of RST|extraneous bytes before marker 0xd[0-7]",
    re.IGNORECASE,
)
# Left over before another marker: bytes that some programs append, or what damage in the last interval left.
_SUSPICION = re.compile("extraneous bytes")

CAN_CATCH = find_spec("fasttransfer.pipelines._stderr") is not None
"""Whether warnings can be caught: the module was built, which takes glibc."""

_stderr: Any = import_module("fasttransfer.pipelines._stderr") if CAN_CATCH else None


class Warned(NamedTuple):
    """The result of a decoder, and libjpeg's warning while it ran, "" for none."""

    result: Any
    warning: str

    @property
    def is_damage(self) -> bool:
        """Whether pixels are certainly lost."""
        return _DAMAGE.search(self.warning) is not None

    @property
    def is_suspicious(self) -> bool:
        """Whether pixels may be lost."""
        return _SUSPICION.search(self.warning) is not None


def catch_warnings(decode: Callable[[], Any]) -> Warned:
    """Call `decode` and return its result with libjpeg's warning. Thread-safe; needs `CAN_CATCH`."""
    _stderr.begin()
    try:
        result = decode()
    finally:
        warning = " ".join(_stderr.end().decode(errors="replace").split())
    return Warned(result, warning)
