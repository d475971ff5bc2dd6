"""nginx' configuration under gixy-next, a static analyser for nginx' security traps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import Settings
from host import proxy

CONFIGURATION = proxy.by_hand("nginx")
FLEET = proxy.render(
    Settings.parse(
        "gixy",
        {
            "subnetIds": '["subnet-00000000", "subnet-00000001"]',
            "prometheusCidrs": '["10.20.0.0/16"]',
            "apiCidrs": '["10.0.0.0/16"]',
        },
        has_token=True,
    ),
    ["10.0.1.0/24"],
    on_host=False,
)


def findings(folder: Path, configuration: str, *options: str) -> str:
    (folder / "proxy.conf").write_text(configuration)
    line = proxy.SYNC_COMMANDS["nginx"]["token_line"].replace("{token}", "token")
    (folder / "token.conf").write_text(line)
    gixy = Path(sys.executable).with_name("gixy")
    done = subprocess.run(
        [gixy, *options, folder / "proxy.conf"], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_gixy_has_nothing_to_say(tmp_path: Path) -> None:
    assert "No issues found." in findings(tmp_path, CONFIGURATION)


def test_gixy_says_of_a_fleet_only_what_is_meant(tmp_path: Path) -> None:
    """`return` comes before `allow` and `deny`: whom it answers, the map of targets says."""
    meant = "return_bypasses_allow_deny"
    assert meant in findings(tmp_path, FLEET)
    assert "No issues found." in findings(tmp_path, FLEET, f"--skips={meant}")


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
