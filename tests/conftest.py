"""What runs where when the tests run on two cores, and a blank Pulumi runtime under mocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pulumi
import pytest

GROUPS = {
    "vm": "vm",
    "behaviour/test_cases.py": "behaviour",
    "behaviour/test_document.py": "behaviour",
    "behaviour/test_fuzz.py": "behaviour",
    "sandbox/test_sandbox.py": "sandbox",
}
"""Files that share what is dear to start; the longest first."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each group, and each other file, on one worker; begin with the longest."""
    order = [*dict.fromkeys(GROUPS.values())]

    def group(item: pytest.Item) -> str:
        path = item.path.relative_to(Path(__file__).parent)
        return GROUPS.get(str(path)) or GROUPS.get(path.parts[0]) or str(path)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda i: order.index(group(i)) if group(i) in order else len(order))


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
