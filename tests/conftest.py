"""A blank Pulumi runtime, for the tests under mocks."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pulumi
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()) and "sandbox" not in item.path.parts:
            # the SDK leaves coroutines behind under mocks
            item.add_marker(
                pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
            )


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
    gc.collect()  # what is left behind is to be complained of here, not in a later test
