"""What production does to a machine: a second sandbox beside the first, replacement, down."""

from __future__ import annotations

import gzip
import platform
import re
import subprocess
import threading
from pathlib import Path

import yaml

from host.cloud_config import COMMITTED, SYNC
from sandbox.aws import BAKED
from sandbox.machines.vm import power
from sandbox.machines.vm.machine import VirtualMachine
from sandbox.processes import wait
from sandbox.system import Sandbox
from sandbox.tools import ROOT
from sandbox.vpc.network import MIRROR_SERVERS
from tests.vm.conftest import machine_of
from tests.vm.faults import World, filtered


def traces(booted: Sandbox, name: str = "") -> set[str]:
    """What it has, and could leave, on this computer outside its folder."""
    name = name or machine_of(booted).network.name
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    groups = [str(g) for folder in power.hierarchies() for g in folder.glob("sandbox-*")]
    nspawn = [str(file) for file in Path("/run/systemd/nspawn").rglob("*")]
    found = [*spaces.splitlines(), *mounts, *groups, *nspawn]
    return {trace for trace in found if name in trace or str(booted.folder) in trace}


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


CUTS = {
    "Starting .*install-metrics-proxy": "what was written is lost, and no mirror answers",
    "Unpacking ": "packages are half there",
    "Setting up ": "packages are half set up",
    "Setting up apache2 ": "the last step",
}
"""Where the power fails, one after another: what the console says -> what it leaves."""


class Cutter(threading.Thread):
    """Takes a machine's power away at several moments of its installation."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self.sandbox = sandbox
        self.cut = 0
        self._heard = 0

    def hears(self, words: str) -> None:
        """Wait until the console says it, after what was waited for before."""
        machine = machine_of(self.sandbox)

        def said() -> bool:
            log = self.sandbox.logs / "host.log"
            found = log.exists() and re.compile(words).search(machine.console, self._heard)
            self._heard = found.end() if found else self._heard
            return bool(found)

        wait(said, f"{words!r} to be said", 150)

    def run(self) -> None:
        machine = machine_of(self.sandbox)
        for moment in CUTS:
            self.hears(moment)
            if not self.cut:  # a disk forgets what it was not made to keep
                document = gzip.decompress((COMMITTED / "apache.gz").read_bytes())
                files = [item["path"] for item in yaml.safe_load(document)["write_files"]]
                assert machine.inside("truncate", "--size=0", *files).returncode == 0
            reset(machine)
            if not self.cut:
                world = World(vm=self.sandbox, machine=machine)
                with filtered(world, f"ip daddr {MIRROR_SERVERS} reject with tcp reset"):
                    self.hears("Could not connect to")
            self.cut += 1


def power_of(machine: VirtualMachine) -> int | None:
    """The machine's first process; none while it is off."""
    try:
        return power.leader(machine.network.name)
    except (ProcessLookupError, FileNotFoundError):
        return None


def reset(machine: VirtualMachine) -> None:
    """End all of it at once, and switch it on again."""
    before = power_of(machine)
    machine.inside("systemctl", "reboot", "--force", "--force")
    wait(lambda: power_of(machine) not in (None, before), "the next boot")


def said(machine: VirtualMachine, *command: str) -> str:
    done = machine.inside(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_second_sandbox_its_replacement_and_its_end(vm: Sandbox, tmp_path: Path) -> None:
    other = Sandbox(tmp_path / "other", host="vm")
    cutter = Cutter(other)
    try:
        # the power fails again and again while it is installed
        cutter.start()
        other.up("apache")
        cutter.join()
        assert cutter.cut == len(CUTS)
        machine = machine_of(other)
        assert "apache2" in said(machine, "ps", "-eo", "comm")
        assert said(machine, "dpkg", "--audit") == ""
        assert said(machine, "systemctl", "--failed", "--no-legend", "--plain") == ""
        assert said(machine, "cat", SYNC) == (ROOT / "host" / "sync.py").read_text()

        outputs = other.engine.outputs()
        assert all(vm.scrapes().values())
        assert all(other.scrapes().values())
        assert vm.contract()["proxy"]["port"] != other.contract()["proxy"]["port"]
        assert vm.contract()["host"]["root"] != other.contract()["host"]["root"]

        # another machine in its place: its image has the packages, and no mirror is there
        (machine.root / "var/of-the-old-one").touch()
        architecture = "arm64" if platform.machine() == "aarch64" else "x86_64"
        other.engine.configure({"amiId": BAKED[architecture], "rebootTime": "03:30"})
        asked = (other.logs / "services.log").read_text().count("mirror ")
        world = World(vm=other, machine=machine)
        with filtered(world, f"ip daddr {MIRROR_SERVERS} drop"):
            other.up("nginx")
        assert (other.logs / "services.log").read_text().count("mirror ") == asked
        replaced = other.engine.outputs()
        assert replaced["instanceId"] != outputs["instanceId"]
        assert replaced["privateIp"] == outputs["privateIp"]
        assert all(other.scrapes().values())
        assert "nginx" in said(machine, "ps", "-eo", "comm")
        assert not (machine.root / "var/of-the-old-one").exists()

        # an update that needs a reboot is seen, and gets one at the time that is set
        said(machine, "touch", "/run/reboot-required")
        wait(
            lambda: "metrics_proxy_reboot_required 1.0" in (other.proxy_metrics() or ""),
            "the metric",
        )
        said(machine, "unattended-upgrade")
        scheduled = said(machine, "cat", "/run/systemd/shutdown/scheduled")
        assert "MODE=reboot" in scheduled
        said(machine, "shutdown", "-c")

        assert len(traces(other)) >= 6  # four networks, a disk, a control group
        other.down()
        assert not (tmp_path / "other").exists()
        wait(lambda: not processes(tmp_path / "other"), "its processes to end", 10)
        assert traces(other) == set()
    finally:
        other.down()
    assert all(vm.scrapes().values())
