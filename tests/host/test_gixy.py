"""nginx' configuration under gixy-next, a static analyser for nginx' security traps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from host import proxy

CONFIGURATION = proxy.by_hand("nginx")


def findings(folder: Path, configuration: str) -> str:
    (folder / "proxy.conf").write_text(configuration)
    line = proxy.SYNC_COMMANDS["nginx"]["token_line"].replace("{token}", "token")
    (folder / "token.conf").write_text(line)
    gixy = Path(sys.executable).with_name("gixy")
    done = subprocess.run(
        [gixy, folder / "proxy.conf"], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_gixy_has_nothing_to_say(tmp_path: Path) -> None:
    assert "No issues found." in findings(tmp_path, CONFIGURATION)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("proxy_pass $target;", "proxy_pass http://$http_host;"),
        ("server_tokens off;", "server_tokens on;"),
    ],
)
def test_gixy_sees_a_trap(tmp_path: Path, old: str, new: str) -> None:
    assert old in CONFIGURATION
    assert "No issues found." not in findings(tmp_path, CONFIGURATION.replace(old, new))
