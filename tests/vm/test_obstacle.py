"""Where no machine can boot, the sandbox says why in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.__main__ import main
from sandbox.vm import security_group
from sandbox.vm.host import obstacle


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert obstacle() == "it takes root (namespaces, mounts, control groups)"


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert obstacle() == "mmdebstrap is missing: apt-get install mmdebstrap"


def test_the_command_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["--folder", str(tmp_path / "sandbox"), "up", "--host", "vm"]) == 1
    assert capsys.readouterr().err == f"sandbox: --host vm: {obstacle()}\n"
    assert not (tmp_path / "sandbox").exists()


def test_a_rule_that_is_not_modelled_is_refused() -> None:
    rule = {"IsEgress": True, "IpProtocol": "tcp", "FromPort": 1, "ToPort": 2}
    with pytest.raises(ValueError, match="does not model"):
        security_group.ruleset([{**rule, "ReferencedGroupInfo": {"GroupId": "sg-1"}}])
    assert "ip daddr 10.0.0.0/8 tcp dport 1-2 accept" in security_group.ruleset(
        [{**rule, "CidrIpv4": "10.0.0.0/8"}]
    )
