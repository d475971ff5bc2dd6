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


def test_a_fleet_takes_machines_that_boot(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "sandbox"
    assert main(["--folder", str(folder), "up", "--machines", "2", "--host", "process"]) == 1
    said = "sandbox: --machines 2 takes machines that boot: --host is process\n"
    assert capsys.readouterr().err == said
    assert not folder.exists()


def test_the_number_of_machines_is_a_new_sandbox(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "sandbox.json").write_text('{"host": "vm", "machines": 2, "processes": {}}')
    assert main(["--folder", str(tmp_path), "up", "--machines", "1"]) == 1
    assert capsys.readouterr().err.endswith("sandbox: 2 machines are up; run: down, then up\n")
