"""Judge libjpeg's warnings: it decodes a damaged JPEG to the end, with what is lost grey or shifted, and warns.

Only the first warning of an image is known.
"""

from __future__ import annotations

import re

# Pixels are lost. A marker D0 to D7 separates intervals of one image: bytes left over before it are missing elsewhere.
_DAMAGE = re.compile(
    "premature end|bad Huffman code|bad arithmetic code|instead of RST|extraneous bytes before marker 0xd[0-7]",
    re.IGNORECASE,
)
# Left over before another marker: bytes that some programs append, or what damage in the last interval left.
_SUSPICION = re.compile("extraneous bytes")


def is_damage(warning: str) -> bool:
    """Return whether a warning says that pixels are lost."""
    return _DAMAGE.search(warning) is not None


def is_suspicious(warning: str) -> bool:
    """Return whether a warning says that there is something of which pixels may be lost."""
    return _SUSPICION.search(warning) is not None
