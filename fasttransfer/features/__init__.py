"""Frozen features: computed once, kept packed in shards, found by what determines them.

In a notebook:

    from fasttransfer import features

    cut5 = features.of("runs/builtin-natural-manmade", "baseA", cut=5, task="B")
    cut5.values  # (N, V, 64, 2, 2) bfloat16
"""

from fasttransfer.features.network_features import Features, batches, of

__all__ = ["Features", "batches", "of"]
