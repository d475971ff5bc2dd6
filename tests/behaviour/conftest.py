"""Every case at every proxy, run once."""

from __future__ import annotations

import pytest

from tests.behaviour import cases, fuzz, table
from tests.behaviour.proxies import KINDS

Outcomes = dict[str, dict[cases.Case, cases.Outcome]]


@pytest.fixture(scope="session")
def outcomes() -> Outcomes:
    return cases.run(table.CASES)


@pytest.fixture(scope="session")
def results() -> dict[str, fuzz.Result]:
    """What became of the fuzz at each kind of proxy."""
    return {kind: fuzz.run(kind) for kind in KINDS}
