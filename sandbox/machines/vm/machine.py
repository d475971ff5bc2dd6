"""The kind `vm`: the machine boots as Debian 13 in a network of its own."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from sandbox.aws import BAKED, REGION, Account
from sandbox.machines.kind import Processes
from sandbox.machines.vm import image, power
from sandbox.processes import wait
from sandbox.vpc import authority, security_group, services
from sandbox.vpc.addresses import Addresses, Place, Ports, Zone
from sandbox.vpc.network import (
    ADDRESSES,
    AWS_SERVERS,
    GATEWAY,
    MIRROR_SERVERS,
    VPC_DNS,
    Network,
    call,
)

DISK_SIZE: Final = "1g"
CA_BUNDLE: Final = "etc/ssl/certs/ca-certificates.crt"
PROGRAMS: Final = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
}
"""Program → Debian package."""
_TRY: Final = """
mount -t tmpfs tmpfs /mnt && cd /mnt && mkdir lower upper work root &&
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root
"""


def obstacle() -> str | None:
    """Why this computer cannot boot a machine, in one line; None if it can."""
    if platform.system() != "Linux":
        return f"it takes Linux, and this is {platform.system()}"
    if os.geteuid() != 0:
        return "it takes root (namespaces, mounts, control groups)"
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is missing: apt-get install {package}"
    if not any((folder / "cgroup.controllers").exists() for folder in power.hierarchies()):
        return "no cgroup2 is mounted"
    spaces = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork"]
    tried = subprocess.run([*spaces, "sh", "-c", _TRY], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"namespaces or overlays are not allowed here ({tried.stderr.strip()})"
    return None


class Guest:
    """One machine that boots: its own kernel namespaces, network, systemd and disk."""

    def __init__(self, network: Network, name: str, folder: Path, console: Path) -> None:
        self.network = network
        self.name = name
        self.folder = folder
        self.disk = folder / "disk"
        self._console = console

    @property
    def root(self) -> Path:
        """What the machine itself sees, /run included. Not to be resolved: it is a link to `/`."""
        return Path(f"/proc/{power.leader(self.name)}/root")

    @property
    def console(self) -> str:
        """What `aws ec2 get-console-output` would answer."""
        return self._console.read_text(errors="replace")

    def inside(self, *command: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Run a command in the machine."""
        enter = ["nsenter", "--target", str(power.leader(self.name))]
        enter += ["-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]  # all its namespaces
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        runuser = [] if user == "root" else ["runuser", "-u", user, "--"]
        return subprocess.run(
            [*enter, *environment, *runuser, *command], capture_output=True, text=True, check=False
        )

    def drop_disk(self) -> None:
        if self.disk.is_mount():
            call("umount", self.disk)

    def new_disk(self, built: image.Tree, ca: str) -> None:
        """A blank one, in memory, on top of the tree; it trusts the sandbox's authority."""
        self.drop_disk()
        self.disk.mkdir(parents=True, exist_ok=True)
        call("mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE},mode=755", "tmpfs", self.disk)
        for name in ("upper", "work", "root", "hypervisor"):
            (self.disk / name).mkdir()
        (self.disk / "hypervisor" / "uuid").write_text("ec2a0b1c-0000-0000-0000-000000000000\n")
        for name, text in {
            CA_BUNDLE: (built.root / CA_BUNDLE).read_text() + ca,
            "usr/local/share/ca-certificates/sandbox.crt": ca,  # survives update-ca-certificates
        }.items():
            (self.disk / "upper" / name).parent.mkdir(parents=True)
            (self.disk / "upper" / name).write_text(text)


def tree_of(described: dict[str, Any]) -> tuple[image.Tree, str]:
    """What a machine's image is built as, and its layers, as an overlay has them."""
    baked = described["ImageId"] in BAKED.values()
    built = image.bake() if baked else image.build()
    return built, f"{built.baked}:{built.root}" if baked else str(built.root)


def authority_of(folder: Path, built: image.Tree) -> str:
    """The certificate that machines trust; issued once."""
    if not (folder / "ca.pem").exists():
        authority.issue(folder, [f"*.{REGION}.amazonaws.com", *built.mirrors])
    return (folder / "ca.pem").read_text()


def network_of(folder: Path) -> Network:
    """The sandbox's own, whose name is chosen once."""
    name = folder / "name"
    if not name.exists():
        folder.mkdir(parents=True, exist_ok=True)
        name.write_text(f"sandbox-{secrets.token_hex(3)}")
    return Network(name.read_text())


class Booted:
    """What one machine and a fleet have in common: the network around them."""

    kind: ClassVar[str] = "vm"
    addresses: ClassVar[Addresses] = ADDRESSES
    ports: ClassVar[Ports] = Ports(proxy=9446, prometheus=9090, api=9464, workers=3002)
    zones: Sequence[Zone] = ()
    """Of a fleet; the one machine's subnet is none of them."""

    folder: Path
    network: Network

    def reach(self, what: Literal["proxy", "prometheus"], _: str) -> tuple[str, int]:
        return "127.0.0.1", services.ports(self.folder)[what]

    def prefix(self, place: Place) -> list[str]:
        return self.network.prefix(place)

    def at(self, place: str) -> AbstractContextManager[object]:
        return self.network.at(place)

    def prepare(self, step: Callable[[str], AbstractContextManager[None]]) -> None:
        if not image.cached().root.exists():
            with step("Debian 13 tree (cached for a week)"):
                image.build()
        if not self.network.path("vpc").exists():
            with step("network namespaces"):
                self.network.make(self.zones)

    def dns(self, built: image.Tree) -> list[str]:
        """VPC DNS and DHCP, but for who gets which address."""
        hosts, leases = self.folder / "hosts", self.folder / "leases"
        if not hosts.exists():
            hosts.write_text(f"{ADDRESSES.api} {ADDRESSES.api_name}\n")
        dns = [*self.network.prefix("vpc"), "dnsmasq", "--keep-in-foreground", "--no-resolv"]
        dns += ["--no-hosts", f"--addn-hosts={hosts}", "--local-ttl=5", "--bind-dynamic"]
        dns += ["--user=root", "--log-facility=-", "--dhcp-authoritative"]
        dns += [f"--dhcp-leasefile={leases}", f"--address=/amazonaws.com/{AWS_SERVERS}"]
        return dns + [f"--address=/{mirror}/{MIRROR_SERVERS}" for mirror in built.mirrors]

    def serve(
        self,
        processes: Processes,
        built: image.Tree,
        dns: list[str],
        proxy: str,
        balancer: Path | None = None,
    ) -> None:
        """VPC DNS, DHCP, metadata, AWS, packages, and the ways in; `proxy` is its address."""
        authority_of(self.folder, built)
        config = services.Config(
            network=self.network.name,
            account=str(self.folder.parent / "aws.json"),
            certificate=str(self.folder / "server.pem"),
            packages=str(built.packages),
            ways_in={
                "proxy": (proxy, self.ports.proxy),
                "prometheus": ("127.0.0.1", self.ports.prometheus),
            },
            balancer=None if balancer is None else str(balancer),
        )
        if not processes.process("dns"):
            processes.spawn("dns", dns)
        if not processes.process("services"):
            config.write(self.folder)
            processes.module("services", "sandbox.vpc.services", str(self.folder))
            wait(lambda: services.ports(self.folder), "the VPC's services (logs/services.log)")


class VirtualMachine(Booted, Guest):
    """A `Machine` that boots, alone in its subnet."""

    what: ClassVar[str] = "Debian 13 in systemd-nspawn"

    def __init__(self, folder: Path, processes: Processes) -> None:
        own = folder / "vm"
        network = network_of(own)
        Guest.__init__(self, network, network.name, own, folder / "logs" / "host.log")
        self._processes = processes

    def run(self, account: Account, instance: str, *, new: bool) -> None:
        found = described(account, instance)
        [interface] = found["NetworkInterfaces"]
        built, layers = tree_of(found)
        if new:
            self.new_disk(built, authority_of(self.folder, built))
        address = interface["PrivateIpAddress"]
        dns = [*self.dns(built), "--interface=vpc0", "--pid-file="]
        dns += [f"--dhcp-range={address},{address},1h"]
        dns += [f"--dhcp-host={interface['MacAddress']},{address}"]
        dns += [f"--dhcp-option=3,{GATEWAY}", f"--dhcp-option=6,{VPC_DNS}"]
        self.serve(self._processes, built, dns, address)
        self.update(account, instance)
        config = power.Config(
            name=self.name,
            network=self.network.name,
            tree=layers,
            disk=str(self.disk),
            mac=interface["MacAddress"],
        )
        config.write(self.folder / "machine.json")
        self._processes.module(
            "host", "sandbox.machines.vm.power", str(self.folder / "machine.json")
        )

    def update(self, account: Account, instance: str) -> None:
        [interface] = described(account, instance)["NetworkInterfaces"]
        rules = security_group.read(account, interface["NetworkInterfaceId"])
        self.network.nft(security_group.ruleset(rules))

    def remove(self) -> None:
        power.kill(self.name)
        self.drop_disk()
        self.network.remove()


def described(account: Account, instance: str) -> dict[str, Any]:
    """What EC2 has on record of an instance."""
    answer = account.client("ec2").describe_instances(InstanceIds=[instance])
    return dict(answer["Reservations"][0]["Instances"][0])
