"""Settings as a stack file gives them, and the Prometheus tools."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from config.settings import Settings
from sandbox.machines.vm.machine import obstacle
from sandbox.tools import DEBIAN
from tests.monitoring.server import serve

MakeSettings = Callable[..., Settings]


@pytest.fixture
def settings() -> MakeSettings:
    """Return a maker of settings that are the defaults but for what it is told."""
    required = {
        "subnetId": "subnet-0123456789abcdef0",
        "prometheusCidrs": ["10.20.0.0/16"],
        "apiCidrs": ["10.0.1.0/24"],
    }

    def make(**config: object) -> Settings:
        texts = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in {**required, **config}.items()
        }
        return Settings.parse("dev", texts, has_token=True)

    return make


def _tool(name: str) -> str:
    # The built one first: a distribution's may be too old for scrape_config_files.
    found = shutil.which(name, path=os.pathsep.join([".cache/bin", os.environ["PATH"]]))
    if not found:
        pytest.fail(f"{name} is neither in .cache/bin nor on $PATH")
    return str(Path(found).resolve())


@pytest.fixture(scope="session")
def promtool() -> str:
    """Return the path of promtool."""
    return _tool("promtool")


@pytest.fixture(scope="session")
def prometheus(request: pytest.FixtureRequest) -> Callable[[Path], AbstractContextManager[str]]:
    """Return `serve` with a Prometheus; the parameter `debian` asks for Debian's, which a machine's
    tree brings."""
    program = _tool("prometheus")
    if getattr(request, "param", "") == "debian":
        if reason := obstacle():
            assert "CI" not in os.environ, reason
            pytest.skip(f"no tree can be built here: {reason}")
        program = str(DEBIAN / "prometheus")

    return functools.partial(serve, program)
