"""What the pages tell of a stack's settings, by the real Pulumi CLI and without any cloud."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from sandbox.engine import EXAMPLES
from sandbox.tools import ROOT, search_path
from tests.docs.commands import STACK, Run, every

CANARY = "canary-0c9e51a7d2+/e3.~_tok=="


def test_the_cli_takes_them(tmp_path: Path) -> None:
    project, state = tmp_path / "project", tmp_path / "state"
    shutil.copytree(EXAMPLES, project / "config/examples")
    state.mkdir()
    shutil.copy(ROOT / "Pulumi.yaml", project)
    environment = {
        **os.environ,
        "PATH": search_path(),
        "PULUMI_HOME": str(tmp_path / "home"),
        "PULUMI_BACKEND_URL": state.as_uri(),
        "PULUMI_CONFIG_PASSPHRASE": "x",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    commands = sorted({it.text for it in every(lambda it: it == Run(STACK))}, key=order)
    assert commands[1].startswith("pulumi stack init")
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=project,
            env=environment,
            input=CANARY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, command + done.stderr
    [file] = (project / "config").glob("*.yaml")
    assert file.name == "Pulumi.dev.yaml"
    assert file.read_text().startswith("# A stack for trying things out.")
    assert "metrics-proxy:adminToken:\n    secure: " in file.read_text()
    assert CANARY not in file.read_text()


def order(command: str) -> int:
    """A file, a stack, what is set, what is taken away."""
    begins = ["cp config", "pulumi stack init", "pulumi config set", "pulumi config rm"]
    return [command.startswith(one) for one in begins].index(True)
