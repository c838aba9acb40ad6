"""Frozen features: computed once, kept packed in shards, found by what determines them.

In a notebook:

    from fasttransfer import features

    found = features.of("runs/builtin-natural-manmade", "baseA", cut=5, task="B")
    found.values  # (N, V, 64, 2, 2) bfloat16
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fasttransfer.features.network_features import Features, batches, of

__all__ = ["Features", "batches", "of"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: what they need needs this package."""
    if name in __all__:
        from fasttransfer.features import network_features

        return getattr(network_features, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
