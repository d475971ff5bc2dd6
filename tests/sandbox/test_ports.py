"""Two sandboxes of plain processes that begin in the same moment."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

from sandbox.machines.vm.machine import VirtualMachine
from sandbox.system import Sandbox


def test_sandboxes_that_begin_together_do_not_want_the_same_ports(tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        begun = Sandbox(tmp_path / name)
        begun.folder.mkdir()
        found.append(astuple(begun.machine.ports))
        assert astuple(Sandbox(begun.folder).machine.ports) == found[-1]
    assert found[0] != found[1]
    assert not {*found[0], *found[1]} & {*astuple(VirtualMachine.ports)}
