"""Fixtures of the image room's tests."""

from __future__ import annotations

import pytest
from preparing import SHARD_BYTES

from fasttransfer.pipelines import shard_writer


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Make shards like those of `preparing`, of the test's `kind` if it has one."""
    kind = request.getfixturevalue("kind") if "kind" in request.fixturenames else "raw"
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", SHARD_BYTES[kind])
