"""The machine's power switch: boots it, boots it again when it reboots, ends when it is off.

`python -m sandbox.machines.vm.power CONFIG` runs until the machine powers off or this is
terminated, which shuts the machine down. Killed, it takes the machine with it, as a power cut
would.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sandbox.processes import wait
from sandbox.vpc.network import Network

REBOOT: Final = 133
SHUTDOWN_SECONDS: Final = 15
_BOOT: Final = Path(__file__).with_name("boot.sh")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to boot."""

    name: str
    network: str
    tree: str
    disk: str
    mac: str
    place: str = "machine"
    """Its namespace in the network."""
    bridge: str | None = None
    """Its subnet, for one of a fleet."""

    @classmethod
    def read(cls, file: Path) -> Config:
        return cls(**json.loads(file.read_text()))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))


def hierarchies() -> list[Path]:
    """Where control groups are made: the unified hierarchy, and systemd's old one if any."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted(
        {
            Path(folder)
            for _, folder, kind, options, *_ in mounts
            if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options)
        }
    )


def cgroups(name: str) -> list[Path]:
    """A machine's control groups."""
    return [folder / name for folder in hierarchies()]


def kill(name: str) -> None:
    """End every process of the machine at once, and remove its control groups."""
    for group in cgroups(name):
        if (group / "cgroup.kill").exists():
            (group / "cgroup.kill").write_text("1")

    def gone() -> bool:
        for group in cgroups(name):
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):  # still in use
                    Path(folder).rmdir()
        return not any(group.exists() for group in cgroups(name))

    wait(gone, f"the control groups of {name} to be empty", 20)


def leader(name: str) -> int:
    """The pid of the machine's own pid 1; `ProcessLookupError` if it is off."""
    for group in cgroups(name):
        for file in group.glob("**/init.scope/cgroup.procs"):
            for pid in file.read_text().split():
                status = Path(f"/proc/{pid}/status").read_text()
                if any(
                    line.startswith("NSpid:") and line.split()[-1] == "1"
                    for line in status.splitlines()
                ):
                    return int(pid)
    raise ProcessLookupError(f"the machine {name} is off")


class PowerSwitch:
    """Boots until it is told to stop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._network = Network(config.network)
        self._running: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """The exit status of the last boot."""
        status = REBOOT
        while status == REBOOT and not self._stopping:
            status = self._boot()
        return status

    def _boot(self) -> int:
        config, began = self._config, time.monotonic()
        self._network.plug(config.mac, config.place, config.bridge)
        for group in cgroups(config.name):
            group.mkdir(exist_ok=True)
        command = ["nsenter", f"--net={self._network.path(config.place)}", "unshare", "--mount"]
        command += ["setpriv", "--pdeathsig", "KILL", "sh", str(_BOOT)]
        command += [config.name, config.tree, config.disk, *map(str, cgroups(config.name))]
        self._running = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        status = self._running.wait()
        kill(config.name)  # nothing of it may hold the disk
        print(f"machine ended with {status} after {time.monotonic() - began:.0f} s", flush=True)
        return status

    def stop(self, *_: object) -> None:
        """As when its power button is pressed; as when it is held, after a while."""
        self._stopping = True
        if self._running is not None:
            self._running.terminate()
            signal.alarm(SHUTDOWN_SECONDS)

    def cut(self, *_: object) -> None:
        kill(self._config.name)


def main() -> int:
    config = Config.read(Path(sys.argv[1]))
    switch = PowerSwitch(config)
    signal.signal(signal.SIGTERM, switch.stop)
    signal.signal(signal.SIGALRM, switch.cut)
    return switch.run()


if __name__ == "__main__":
    sys.exit(main())
