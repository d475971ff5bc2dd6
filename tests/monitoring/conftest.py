"""Settings as a stack file gives them, and the Prometheus tools."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from config.settings import Settings
from sandbox.machines.vm.machine import obstacle
from sandbox.tools import DEBIAN

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
    """Return a context manager that runs Prometheus with a config file; its value is the URL.

    The config's folder is given a `prometheus.log`, and a `data` folder if it has none. The
    parameter `debian` asks for Debian's, which a machine's tree brings.
    """
    program = _tool("prometheus")
    if getattr(request, "param", "") == "debian":
        if reason := obstacle():
            assert "CI" not in os.environ, reason
            pytest.skip(f"no tree can be built here: {reason}")
        program = str(DEBIAN / "prometheus")

    @contextlib.contextmanager
    def run(config: Path) -> Iterator[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={config.parent / 'data'}",
            f"--web.listen-address={address}",
            "--web.enable-lifecycle",
        ]
        log = config.parent / "prometheus.log"
        with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
            try:
                deadline = time.monotonic() + 30
                while not _ready(address):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
                yield f"http://{address}"
            finally:
                process.terminate()

    return run


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
            return True
    except OSError:
        return False
