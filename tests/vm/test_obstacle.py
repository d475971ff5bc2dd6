"""Where no machine can boot, the sandbox says why in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.__main__ import main
from sandbox.machines.vm.machine import obstacle


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
