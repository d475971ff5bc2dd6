"""A fleet: the machines that the embedded EC2 has on record of Auto Scaling groups, booted.

`python -m sandbox.machines.vm.fleet FOLDER` runs until it is terminated: it boots what EC2 says is
running, each in its zone, ends what EC2 has ended, tells EC2 of a machine that ended by itself, and
keeps to the security groups. Which machines there are to be is Auto Scaling's business.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from sandbox.autoscaling import GROUP_TAG, HEALTH
from sandbox.aws import Account
from sandbox.machines.kind import Processes
from sandbox.machines.vm import image, power
from sandbox.machines.vm.machine import Booted, Guest, authority_of, network_of, tree_of
from sandbox.vpc import balancer, security_group
from sandbox.vpc.network import ZONES, Network, call

MEMBERS: Final = "members.json"
DHCP: Final = "dhcp-hosts"
TICK: Final = 0.5  # seconds
MOST: Final = len(ZONES)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A machine of the fleet."""

    instance: str
    zone: str
    address: str
    mac: str
    health: str = "initial"
    why: str = ""

    @property
    def place(self) -> str:
        """Its namespace; its interface in the VPC has at most 15 characters."""
        return self.instance[-8:]


class Fleet(Booted):
    """Several machines side by side, behind the balancer's stand-in."""

    def __init__(self, folder: Path, processes: Processes, machines: int) -> None:
        self.folder = folder / "vm"
        self.network = network_of(self.folder)
        self.zones = ZONES[:machines]
        self._account = folder / "aws.json"
        self._logs = folder / "logs"
        self._processes = processes

    what: ClassVar[str] = "Debian 13 in systemd-nspawn, behind a stand-in for the balancer"

    @property
    def root(self) -> Path:
        """The machines' folders; their own files are a guest's."""
        return self.folder

    def guest(self, instance: str) -> Guest:
        """One of the machines, there or not."""
        return guest(self.folder, self.network, instance)

    def members(self) -> list[Member]:
        """The machines that run, by zone and age, and what the balancer found of them."""
        file = self.folder / MEMBERS
        found = json.loads(file.read_text()) if file.exists() else []
        health = self.folder.parent / HEALTH
        told = json.loads(health.read_text()) if health.exists() else {}
        members = []
        for one in found:
            state = told.get(one["instance"], {"State": "draining"})
            why = state.get("Description", "")
            members.append(Member(**one | {"health": state["State"], "why": why}))
        return sorted(members, key=lambda it: it.zone)

    def nodes(self) -> dict[str, str]:
        """Zone → address of the balancer's node."""
        file = self.folder / balancer.STATE
        return dict(json.loads(file.read_text())["nodes"]) if file.exists() else {}

    def start(self) -> None:
        """The network's services, the balancer, and whoever boots machines."""
        built = image.build()
        dns = [*self.dns(built), "--interface=prom0", "--no-dhcp-interface=prom0"]
        dns += [f"--pid-file={self.folder / balancer.DNS_PID}"]
        for name in (balancer.HOSTS, DHCP):
            (self.folder / name).touch()
        dns += [f"--addn-hosts={self.folder / balancer.HOSTS}"]
        dns += [f"--dhcp-hostsfile={self.folder / DHCP}"]
        for zone in self.zones:
            network, tag = zone.subnet.partition("/")[0], zone.bridge
            dns += [f"--interface={zone.bridge}", f"--dhcp-range=set:{tag},{network},static,1h"]
            dns += [f"--dhcp-option=tag:{tag},3,{zone.gateway}"]
            dns += [f"--dhcp-option=tag:{tag},6,{zone.dns}"]
        self.serve(self._processes, built, dns, "", self.folder / balancer.STATE)
        balancer.Config(network=self.network.name, account=str(self._account)).write(self.folder)
        for name, module in (
            ("balancer", "sandbox.vpc.balancer"),
            ("machines", "sandbox.machines.vm.fleet"),
        ):
            if not self._processes.process(name):
                self._processes.module(name, module, str(self.folder))

    def resolving(self) -> list[str]:
        """Put before a command of Prometheus' place: its resolver is VPC DNS."""
        file = self.folder / "resolv.conf"
        file.write_text(f"nameserver {self.zones[0].dns}\noptions ndots:1\n")
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return [*self.network.prefix("prometheus"), "sh", "-c", script, str(file)]

    def remove(self) -> None:
        for name in {group.name for h in power.hierarchies() for group in h.glob("sandbox-*")}:
            if name.startswith(f"{self.network.name}-"):
                power.kill(name)
        for folder in self.folder.glob("i-*"):
            if (folder / "disk").is_mount():
                call("umount", folder / "disk")
        self.network.remove()


def guest(folder: Path, network: Network, instance: str) -> Guest:
    console = folder.parent / "logs" / f"host-{instance}.log"
    return Guest(network, f"{network.name}-{instance[-8:]}", folder / instance, console)


class Keeper:
    """Runs what EC2 says is running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._network = network_of(folder)
        self._account = Account.read(folder.parent / "aws.json")
        self._ec2 = self._account.client("ec2")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._members: dict[str, Member] = {}
        self._found: dict[str, Mapping[str, Any]] = {}
        self._ending: set[str] = set()
        self._rules = ""
        self._stop = False

    def stop(self, *_: object) -> None:
        self._stop = True

    def run(self) -> None:
        try:
            while not self._stop:
                try:
                    self.step()
                except Exception:  # the next look may find it mended
                    traceback.print_exc()
                time.sleep(TICK)
        finally:
            for instance in list(self._running):
                power.kill(guest(self._folder, self._network, instance).name)
                self._running[instance].terminate()
                self._running[instance].wait()
                self._clear(instance)

    def step(self) -> None:
        """One look at EC2."""
        filters = [
            {"Name": "tag-key", "Values": [GROUP_TAG]},
            {"Name": "instance-state-name", "Values": ["running"]},
        ]
        answer = self._ec2.describe_instances(Filters=filters)["Reservations"]
        wanted = {i["InstanceId"]: i for r in answer for i in r["Instances"]}
        for instance, process in list(self._running.items()):
            if process.poll() is not None:
                self._clear(instance)
                if instance in wanted and instance not in self._ending:
                    print(f"{instance} has ended by itself", flush=True)
                    self._ec2.stop_instances(InstanceIds=[instance])
                    del wanted[instance]
            elif instance not in wanted and instance not in self._ending:
                print(f"{instance} is ended", flush=True)
                self._ending.add(instance)
                process.terminate()
        fresh = [one for name, one in wanted.items() if name not in self._running]
        # one that shuts down is let through until it is off, or it could not end its connections
        self._found = {k: v for k, v in self._found.items() if k in self._running} | wanted
        self._enforce(self._found.values())
        for one in fresh:
            self._boot(one)
        self._tell()

    def _boot(self, found: Mapping[str, Any]) -> None:
        instance, [card] = found["InstanceId"], found["NetworkInterfaces"]
        one = Member(
            instance=instance,
            zone=found["Placement"]["AvailabilityZone"],
            address=card["PrivateIpAddress"],
            mac=card["MacAddress"],
        )
        machine = guest(self._folder, self._network, instance)
        machine.folder.mkdir(exist_ok=True)
        built, layers = tree_of(dict(found))
        machine.new_disk(built, authority_of(self._folder, built))
        self._members[instance] = one
        lines = [f"{it.mac},{it.address}\n" for it in self._members.values()]
        (self._folder / DHCP).write_text("".join(lines))
        os.kill(int((self._folder / balancer.DNS_PID).read_text()), signal.SIGHUP)
        if not self._network.path(one.place).exists():
            self._network.add(one.place)
        config = power.Config(
            name=machine.name,
            network=self._network.name,
            tree=layers,
            disk=str(machine.disk),
            mac=one.mac,
            place=one.place,
            bridge=f"zone-{one.zone[-1]}",
        )
        config.write(machine.folder / "machine.json")
        log = self._folder.parent / "logs" / f"host-{instance}.log"
        with log.open("ab") as output:
            self._running[instance] = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *(sys.executable, "-m", "sandbox.machines.vm.power"),
                    str(machine.folder / "machine.json"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        print(f"{instance} boots in {one.zone} at {one.address}", flush=True)

    def _clear(self, instance: str) -> None:
        """What is left of a machine that is off."""
        machine = guest(self._folder, self._network, instance)
        power.kill(machine.name)
        machine.drop_disk()
        with contextlib.suppress(OSError):
            self._network.drop(self._members[instance].place)
        self._running.pop(instance)
        self._members.pop(instance)
        self._ending.discard(instance)

    def _tell(self) -> None:
        kept = ("instance", "zone", "address", "mac")
        members = [{k: asdict(one)[k] for k in kept} for one in self._members.values()]
        part = self._folder / "members.part"
        part.write_text(json.dumps(members))
        part.replace(self._folder / MEMBERS)

    def _enforce(self, instances: Any) -> None:
        """The security groups of the machines and of the balancer, as they are now."""
        machines = []
        for one in instances:
            groups = [group["GroupId"] for group in one["NetworkInterfaces"][0]["Groups"]]
            machines.append(self._interface(one["PrivateIpAddress"], groups))
        file = self._folder / balancer.STATE
        state = json.loads(file.read_text()) if file.exists() else {"nodes": {}}
        nodes = [self._interface(node, state["groups"]) for node in state["nodes"].values()]
        rules = security_group.fleet_ruleset(machines, nodes, ZONES)
        if rules != self._rules:
            self._network.nft(rules)
            self._rules = rules

    def _interface(self, address: str, groups: Sequence[str]) -> security_group.Member:
        rules = security_group.rules_of(self._ec2, groups)
        rules.sort(key=lambda rule: str(rule["SecurityGroupRuleId"]))
        return security_group.Member(address=address, groups=groups, rules=rules)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the sandbox's vm/")
    keeper = Keeper(parser.parse_args().folder)
    signal.signal(signal.SIGTERM, keeper.stop)
    keeper.run()


if __name__ == "__main__":
    main()
