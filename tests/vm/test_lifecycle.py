"""What production does to a machine: a second sandbox beside the first, replacement, down."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

from sandbox.machines.vm import power
from sandbox.processes import wait
from sandbox.system import Sandbox
from sandbox.vpc.network import MIRROR_SERVERS
from tests.vm.conftest import boot, machine_of
from tests.vm.faults import World, filtered


def traces() -> set[str]:
    """What a sandbox could leave on this computer outside its folder."""
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    groups = [str(g) for folder in power.hierarchies() for g in folder.glob("sandbox-*")]
    nspawn = [str(file) for file in Path("/run/systemd/nspawn").rglob("*")]
    return {*spaces.splitlines(), *mounts, *groups, *nspawn}


def processes(folder: Path) -> list[bytes]:
    """Command lines that name the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = file.read_bytes()
        except OSError:
            continue  # ended meanwhile
        if str(folder).encode() in text:
            found.append(text)
    return found


def test_a_second_sandbox_its_replacement_and_its_end(vm: Sandbox, tmp_path: Path) -> None:
    before = traces()
    other = boot(tmp_path / "other")
    try:
        outputs = other.engine.outputs()
        assert all(vm.scrapes().values())
        assert all(other.scrapes().values())
        assert vm.contract()["proxy"]["port"] != other.contract()["proxy"]["port"]
        assert vm.contract()["host"]["root"] != other.contract()["host"]["root"]

        (machine_of(other).root / "var/of-the-old-one").touch()
        # its package mirror does not answer at first
        world, heard = World(vm=other, machine=machine_of(other)), len(machine_of(other).console)
        refused, there = "Could not connect to", threading.Event()

        def mend() -> None:
            with filtered(world, f"ip daddr {MIRROR_SERVERS} reject with tcp reset"):
                there.set()
                wait(lambda: refused in world.machine.console[heard:], "apt to complain", 120)

        mender = threading.Thread(target=mend)
        mender.start()
        assert there.wait(10)
        other.up("apache")
        mender.join()
        replaced = other.engine.outputs()
        assert replaced["instanceId"] != outputs["instanceId"]
        assert replaced["privateIp"] == outputs["privateIp"]
        assert all(other.scrapes().values())
        assert "apache2" in machine_of(other).inside("ps", "-eo", "comm").stdout
        assert not (machine_of(other).root / "var/of-the-old-one").exists()

        other.down()
        assert not (tmp_path / "other").exists()
        wait(lambda: not processes(tmp_path / "other"), "its processes to end", 10)
        assert traces() <= before
    finally:
        other.down()
    assert all(vm.scrapes().values())
