"""One running sandbox for the tests that look at a running system."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.system import Sandbox

CANARY = "canary-6f1d0c27b9+/e4.~_tok=="


@pytest.fixture(scope="session")
def printed() -> list[str]:
    """What pulumi printed while the sandbox came up."""
    return []


@pytest.fixture(scope="session", params=["nginx", "apache"])
def sandbox(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, printed: list[str]
) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("sandbox"))
    try:
        running.up(request.param, token=CANARY, output=printed.append)
        yield running
    finally:
        running.down()
