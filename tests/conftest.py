"""Which tests run side by side, and a blank Pulumi runtime for those under mocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pulumi
import pytest

ROOMS = ("vm", "sandbox")
"""Folders of tests that mostly wait, each with machines that all its tests share."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process (`pytest -n 3 --dist loadgroup`) for each of these rooms, one for the others."""
    for item in items:
        group = item.path.parent.name if item.path.parent.name in ROOMS else "others"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An event loop of its own and a blank Pulumi runtime."""
    monkeypatch.setenv("PULUMI_ERROR_OUTPUT_STRING", "true")
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    pulumi.runtime.reset_options()
    yield
    pulumi.runtime.reset_options()
    asyncio.set_event_loop(None)
    loop.close()
