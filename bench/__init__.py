"""Benchmarks, and the studies behind the documentation; not installed, run from the root of the tree."""
