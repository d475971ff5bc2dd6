"""A release says what it does to running machines."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from pathlib import Path

from config.settings import Settings
from host import cloud_config

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1:]
"""The newest first."""


def machines(entry: str) -> dict[str, tuple[str, str]]:
    """What an entry says of each server's machines: their user data, and what becomes of them."""
    found = re.findall(r"^- (\w+) `([0-9a-f]{12})`: (replaced|kept)\.", entry, re.M)
    return {server: (digest, fate) for server, digest, fate in found}


def user_data(server: str) -> str:
    settings = {
        "subnetId": "subnet-0123456789abcdef0",
        "prometheusCidrs": json.dumps(["10.20.0.0/16"]),
        "apiCidrs": json.dumps(["10.0.1.0/24"]),
        "server": server,
    }
    data = cloud_config.render(
        Settings.parse("dev", settings, has_token=True), "eu-central-1", "metrics-proxy/dev/bundle"
    )
    return hashlib.sha256(data).hexdigest()[:12]


def test_the_newest_entry_has_the_user_data_of_now() -> None:
    said = {server: digest for server, (digest, _) in machines(ENTRIES[0]).items()}
    made = {server: user_data(server) for server in cloud_config.SERVERS}
    assert said == made, f"CHANGELOG.md, Machines of the newest entry, should have {made}"


def test_machines_are_replaced_where_their_user_data_is_another() -> None:
    for newer, older in itertools.pairwise(ENTRIES):
        before = machines(older)
        for server, (digest, fate) in machines(newer).items():
            other = server not in before or digest != before[server][0]
            assert fate == ("replaced" if other else "kept"), (newer.splitlines()[0], server)


def test_the_newest_entry_is_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.match(r"(\S+) \((unreleased|\d{4}-\d\d-\d\d)\)\n", ENTRIES[0])
    assert found
    assert found[1] == project["version"]
