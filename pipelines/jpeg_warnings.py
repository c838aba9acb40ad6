"""Catch libjpeg's warnings about a JPEG, which it writes to stderr, where they name no file.

libjpeg decodes a damaged JPEG to the end and warns: it fills what is lost with grey or shifts the rest. Only the first
warning of an image is written. Torchvision does not pass it on; Pillow drops it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

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


T = TypeVar("T")


def is_damage(warning: str) -> bool:
    """Return whether a warning says that pixels are lost."""
    return _DAMAGE.search(warning) is not None


def is_suspicious(warning: str) -> bool:
    """Return whether a warning says that there is something of which pixels may be lost."""
    return _SUSPICION.search(warning) is not None


def catch_warnings(decode: Callable[[], T]) -> tuple[T, str]:
    """Call `decode` and return its result with libjpeg's warning, "" for none. Thread-safe; needs `CAN_CATCH`."""
    _stderr.begin()
    try:
        result = decode()
    finally:
        warning = " ".join(_stderr.end().decode(errors="replace").split())
    return result, warning
