"""ops/proxy/README.md, run as it stands: on a machine of its own, as far as namespaces go."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import Settings
from monitoring import scrape
from tests.docs import aws_cli
from tests.docs.commands import BY_HAND, Run, how
from tests.docs.machine import NAMESPACES
from tests.docs.pages import ROOT, Command, pages

PAGE = "ops/proxy/README.md"
WAYS = {"nginx", "apache", "nftables", "iptables", "aws"}


def commands(*ways: str) -> list[Command]:
    """What the page tells whoever goes these ways."""
    blocks = [it for it in pages()[PAGE].commands if not it.within and how(it) == Run(BY_HAND)]
    assert set().union(*(it.tags for it in blocks)) == WAYS
    return [it for it in blocks if it.tags <= set(ways)]


def run(folder: Path, *ways: str) -> dict[str, Any]:
    if os.geteuid() != 0:
        assert "CI" not in os.environ, "not root"
        pytest.skip("namespaces of the whole machine need root")
    script = folder / "script"
    script.write_text("\n".join(it.text for it in commands(*ways)))
    (machine := folder / "machine").mkdir()
    module = [sys.executable, "-m", "tests.docs.machine", str(machine), str(script)]
    done = subprocess.run(
        [*NAMESPACES, *module], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("ways", [("nginx", "nftables"), ("apache", "iptables")])
def test_the_page_leads_to_a_proxy_that_serves(tmp_path: Path, ways: tuple[str, str]) -> None:
    found = run(tmp_path, *ways)
    assert found["returncode"] == 0, found["said"]
    assert found["said"].count("up_and_well 1") == 2
    assert found["requests"][0] == "/metrics Bearer token-one"
    assert found["requests"][-1] == "/metrics Bearer token-two"
    assert found["modes"]["token.conf"] == "root:metrics-proxy 640"
    assert found["modes"]["key.pem"] == "root:metrics-proxy 640"
    assert "key.pem" not in found["left"]
    # the firewall, and what there is without it
    assert found["stranger"] == "curl 28"
    assert found["reaches"] == {"9464": True, "3002": True, "8000": False}
    assert found["repeatable"]
    assert found["without"] == {"stranger": "403", "reaches": True}


def test_the_security_group_says_the_same() -> None:
    calls = [aws_cli.parse(text) for text in map(inner, commands("aws")) if "aws ec2" in text]
    rules: dict[str, list[tuple[int, str]]] = {}
    for call in calls[1:]:
        assert call.parameters["GroupId"] == "$group"
        for rule in call.parameters["IpPermissions"]:
            for net in rule["IpRanges"]:
                ports = (rule.get("FromPort", -1), net["CidrIp"])
                rules.setdefault(call.operation, []).append(ports)
    assert [call.query for call in calls] == ["GroupId", None, None, None, None, None]
    api = [(9464, "10.20.2.0/24"), (3002, "10.20.2.0/24")]
    assert rules == {
        "revoke_security_group_egress": [(-1, "0.0.0.0/0")],
        "authorize_security_group_ingress": [(9446, "10.20.0.0/16")],
        "authorize_security_group_egress": [*api, (443, "0.0.0.0/0")],
    }


def inner(command: Command) -> str:
    """Without the variable that takes what it prints."""
    return re.sub(r"(?s)^\w+=\$\((.*)\)$", r"\1", command.text)


def test_the_scrape_config_is_the_programs_with_a_file_for_the_ca() -> None:
    required = {
        "subnetId": "subnet-00000000",
        "prometheusCidrs": '["10.20.0.0/16"]',
        "apiCidrs": '["10.20.2.0/24"]',
    }
    job, _ = scrape.jobs(Settings.parse("dev", required, has_token=True), "10.20.1.7", {}, "")
    job["tls_config"]["ca_file"] = "ca.pem"
    del job["tls_config"]["ca"]
    assert yaml.safe_load((ROOT / "ops/proxy/by-hand.yml").read_text()) == {"scrape_configs": [job]}
