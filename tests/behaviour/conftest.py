"""Every case at every proxy, run once."""

from __future__ import annotations

import resource

import pytest

from tests.behaviour import cases, fuzz, table
from tests.behaviour.proxies import KINDS

# more than 1,000 connections, here and (LimitNOFILE=) at a server
_MOST = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (_MOST, _MOST))

Outcomes = dict[str, dict[cases.Case, cases.Outcome]]


@pytest.fixture(scope="session")
def outcomes() -> Outcomes:
    return cases.run(table.CASES)


@pytest.fixture(scope="session")
def results() -> dict[str, fuzz.Result]:
    """What became of the fuzz at each kind of proxy."""
    return {kind: fuzz.run(kind) for kind in KINDS}
