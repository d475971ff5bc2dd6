"""The kind `vm`: the machine boots as Debian 13 in a network of its own."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from sandbox.aws import BAKED, REGION, Account
from sandbox.machines.kind import Processes
from sandbox.machines.vm import image, power
from sandbox.processes import wait
from sandbox.vpc import authority, security_group, services
from sandbox.vpc.addresses import Addresses, Place, Ports
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


class VirtualMachine:
    """A `Machine` that has its own kernel namespaces, network, systemd and disk."""

    kind: ClassVar[str] = "vm"
    what: ClassVar[str] = "Debian 13 in systemd-nspawn"
    addresses: ClassVar[Addresses] = ADDRESSES
    ports: ClassVar[Ports] = Ports(proxy=9446, prometheus=9090, api=9464, workers=3002)

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder = folder / "vm"
        self.disk = self.folder / "disk"
        self._processes = processes
        name = self.folder / "name"
        if not name.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            name.write_text(f"sandbox-{secrets.token_hex(3)}")
        self.network = Network(name.read_text())

    @property
    def root(self) -> Path:
        """What the machine itself sees, /run included. Not to be resolved: it is a link to `/`."""
        return Path(f"/proc/{power.leader(self.network.name)}/root")

    @property
    def console(self) -> str:
        """What `aws ec2 get-console-output` would answer."""
        return (self.folder.parent / "logs" / "host.log").read_text(errors="replace")

    def reach(self, what: Literal["proxy", "prometheus"], _: str) -> tuple[str, int]:
        return "127.0.0.1", services.ports(self.folder)[what]

    def prefix(self, place: Place) -> list[str]:
        return self.network.prefix(place)

    def at(self, place: str) -> AbstractContextManager[object]:
        return self.network.at(place)

    def inside(self, *command: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Run a command in the machine."""
        enter = ["nsenter", "--target", str(power.leader(self.network.name))]
        enter += ["-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]  # all its namespaces
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        runuser = [] if user == "root" else ["runuser", "-u", user, "--"]
        return subprocess.run(
            [*enter, *environment, *runuser, *command], capture_output=True, text=True, check=False
        )

    def prepare(self, step: Callable[[str], AbstractContextManager[None]]) -> None:
        if not image.cached().root.exists():
            with step("Debian 13 tree (cached for a week)"):
                image.build()
        if not self.network.path("vpc").exists():
            with step("network namespaces"):
                self.network.make()

    def run(self, account: Account, instance: str, *, new: bool) -> None:
        found = _described(account, instance)
        [interface] = found["NetworkInterfaces"]
        baked = found["ImageId"] in BAKED.values()
        built = image.bake() if baked else image.build()
        if new:
            self._new_disk(built)
        self._serve(interface, built)
        self.update(account, instance)
        config = power.Config(
            name=self.network.name,
            tree=f"{built.baked}:{built.root}" if baked else str(built.root),
            disk=str(self.disk),
            mac=interface["MacAddress"],
        )
        config.write(self.folder / "machine.json")
        self._processes.module(
            "host", "sandbox.machines.vm.power", str(self.folder / "machine.json")
        )

    def update(self, account: Account, instance: str) -> None:
        [interface] = _described(account, instance)["NetworkInterfaces"]
        rules = security_group.read(account, interface["NetworkInterfaceId"])
        self.network.nft(security_group.ruleset(rules))

    def remove(self) -> None:
        power.kill(self.network.name)
        self._drop_disk()
        self.network.remove()

    def _drop_disk(self) -> None:
        if self.disk.is_mount():
            call("umount", self.disk)

    def _new_disk(self, built: image.Tree) -> None:
        """A blank one, in memory, on top of the tree; it trusts the sandbox's authority."""
        self._drop_disk()
        self.disk.mkdir(exist_ok=True)
        call("mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE},mode=755", "tmpfs", self.disk)
        for name in ("upper", "work", "root", "hypervisor"):
            (self.disk / name).mkdir()
        (self.disk / "hypervisor" / "uuid").write_text("ec2a0b1c-0000-0000-0000-000000000000\n")
        if not (self.folder / "ca.pem").exists():
            authority.issue(self.folder, [f"*.{REGION}.amazonaws.com", *built.mirrors])
        ca = (self.folder / "ca.pem").read_text()
        for name, text in {
            CA_BUNDLE: (built.root / CA_BUNDLE).read_text() + ca,
            "usr/local/share/ca-certificates/sandbox.crt": ca,  # survives update-ca-certificates
        }.items():
            (self.disk / "upper" / name).parent.mkdir(parents=True)
            (self.disk / "upper" / name).write_text(text)

    def _serve(self, interface: dict[str, Any], built: image.Tree) -> None:
        """VPC DNS, DHCP, metadata, AWS, packages, and the way in."""
        address = interface["PrivateIpAddress"]
        hosts, leases = self.folder / "hosts", self.folder / "leases"
        if not hosts.exists():
            hosts.write_text(f"{ADDRESSES.api} {ADDRESSES.api_name}\n")
        dns = [*self.network.prefix("vpc"), "dnsmasq", "--keep-in-foreground", "--no-resolv"]
        dns += ["--no-hosts", f"--addn-hosts={hosts}", "--local-ttl=5", "--bind-dynamic"]
        dns += ["--interface=vpc0", "--user=root", "--pid-file=", "--log-facility=-"]
        dns += ["--dhcp-authoritative", f"--dhcp-range={address},{address},1h"]
        dns += [f"--dhcp-host={interface['MacAddress']},{address}", f"--dhcp-leasefile={leases}"]
        dns += [f"--dhcp-option=3,{GATEWAY}", f"--dhcp-option=6,{VPC_DNS}"]
        dns += [f"--address=/amazonaws.com/{AWS_SERVERS}"]
        dns += [f"--address=/{mirror}/{MIRROR_SERVERS}" for mirror in built.mirrors]
        config = services.Config(
            network=self.network.name,
            account=str(self.folder.parent / "aws.json"),
            certificate=str(self.folder / "server.pem"),
            packages=str(built.packages),
            ways_in={
                "proxy": (address, self.ports.proxy),
                "prometheus": ("127.0.0.1", self.ports.prometheus),
            },
        )
        if not self._processes.process("dns"):
            self._processes.spawn("dns", dns)
        if not self._processes.process("services"):
            config.write(self.folder)
            self._processes.module("services", "sandbox.vpc.services", str(self.folder))
            wait(lambda: services.ports(self.folder), "the VPC's services (logs/services.log)")


def _described(account: Account, instance: str) -> dict[str, Any]:
    """What EC2 has on record of an instance."""
    answer = account.client("ec2").describe_instances(InstanceIds=[instance])
    return dict(answer["Reservations"][0]["Instances"][0])
