"""Where the operators' tests run; those marked `gpu` are skipped where there is none (conftest.py)."""

from __future__ import annotations

import pytest

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
