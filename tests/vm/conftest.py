"""One booted machine for the tests that look at it or break it and wait for it to recover."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.machines.vm.machine import VirtualMachine, obstacle
from sandbox.system import Sandbox

CANARY = "canary-d21f9a8e44+/e7.~_tok=="


def boot(
    folder: Path, token: str | None = None, server: str = "nginx", machines: int = 1
) -> Sandbox:
    """A sandbox whose machines boot; skips, but not under CI, where that cannot be done."""
    if reason := obstacle():
        assert "CI" not in os.environ, reason
        pytest.skip(f"no machine can boot here: {reason}")
    booted = Sandbox(folder, host="vm", machines=machines)
    try:
        booted.up(server, token)
    except BaseException:
        booted.down()
        raise
    return booted


@pytest.fixture(scope="session")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """The sandbox, up."""
    booted = boot(tmp_path_factory.mktemp("vm"), CANARY)
    yield booted
    booted.down()


def machine_of(booted: Sandbox) -> VirtualMachine:
    assert isinstance(booted.machine, VirtualMachine)
    return booted.machine


@pytest.fixture
def machine(vm: Sandbox) -> VirtualMachine:
    return machine_of(vm)
