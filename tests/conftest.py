"""Which tests run side by side, and a blank Pulumi runtime for those under mocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pulumi
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.printed import searched

ROOMS = ("behaviour", "fleet", "host", "sandbox", "vm")
"""Folders of tests that share machines, or take long."""


class ByRoom(LoadScopeScheduling):
    """A process of `pytest -n` has one of these rooms at a time, or all the others.

    xdist's own groups have no effect with pytest 9.2: they change `Item._nodeid`, which is gone.
    """

    def _split_scope(self, nodeid: str) -> str:
        _, room, file = nodeid.split("/", 2)
        if file.startswith("test_system.py"):
            return "system"  # a sandbox for each server, not at the same time
        return room if room in ROOMS else ""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByRoom:
    return ByRoom(config, log)


@pytest.fixture(scope="session", autouse=True)
def nothing_secret_is_printed() -> Iterator[None]:
    """Of the session, not of a room: in one process the rooms' fixtures live beside each other."""
    with searched():
        yield


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
