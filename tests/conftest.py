"""Which tests run side by side, and a blank Pulumi runtime for those under mocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pulumi
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.printed import searched

ROOMS = {"vm": "machines", "fleet": "machines", "sandbox": "sandbox", "behaviour": "servers"}
"""Folders of tests that share a process of `pytest -n 5`, since their machines are expensive."""


class ByRoom(LoadScopeScheduling):
    """Processes of `pytest -n 5`: one for each room, and server; one for all other tests.

    xdist's own groups have no effect with pytest 9.2: they change `Item._nodeid`, which is gone.
    """

    def _split_scope(self, nodeid: str) -> str:
        room = ROOMS.get(nodeid.split("/")[1], "")
        # each server has a sandbox of its own
        return room + "apache" * (room == "sandbox" and "[apache" in nodeid)


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
