"""Frozen features, computed once and kept: the files that they lie in (`shards`)."""
