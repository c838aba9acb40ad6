"""Made-up studies and the paper's page."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_up import made_up

from fasttransfer.report.side_by_side import paper_page
from fasttransfer.study.records import StudyResults


@pytest.fixture(scope="session")
def papers_page() -> str:
    """The page of the paper's results, drawn once."""
    return paper_page()


@pytest.fixture(scope="session")
def study() -> Callable[..., StudyResults]:
    """Makes studies up: see `made_up`."""
    return made_up
