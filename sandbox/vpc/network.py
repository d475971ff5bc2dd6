"""The network around the machine: machine, API and Prometheus in namespaces, the VPC between.

    machine ──ens5 · vpc0──┐
    api ─────eth0 · api0───┤ vpc: router, VPC DNS and DHCP, metadata, AWS' and Debian's servers
    prometheus eth0 · prom0┘

A fleet's machines have a namespace each, and their subnets are bridges of the VPC, one a zone.

Nothing in it reaches this computer's own network, so that any number of sandboxes use the same
addresses side by side.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sandbox.vpc.addresses import Addresses, Zone

ADDRESSES: Final = Addresses(
    vpc="10.9.0.0/16",
    subnet="10.9.46.0/24",
    api_cidr="10.9.47.0/24",
    prometheus_cidr="10.9.48.10/32",
    api="10.9.47.10",
    api_name="api-internal",
)
ZONES: Final = (
    Zone(letter="a", subnet=ADDRESSES.subnet),
    Zone(letter="b", subnet="10.9.49.0/24"),
    Zone(letter="c", subnet="10.9.50.0/24"),
)
"""Where a fleet's machines are."""
GATEWAY: Final = "10.9.46.1"
VPC_DNS: Final = "10.9.46.2"
METADATA: Final = "169.254.169.254"
AWS_SERVERS: Final = "198.51.100.1"
MIRROR_SERVERS: Final = "198.51.100.2"
NEIGHBOURS: Final = {"api": ADDRESSES.api, "prometheus": "10.9.48.10"}
"""Namespace → address; its router is the first address of that /24."""

_RUN: Final = Path("/run/netns")
_CLONE_NEWNET: Final = 0x40000000  # sched.h


def call(*command: str | Path, text: str | None = None) -> str:
    """Run a program and return its output; `OSError` holds what it complained about."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Network:
    """The namespaces of one sandbox, named after it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def namespace(self, place: str) -> str:
        """`vpc`, `machine` (or one of a fleet), `api` or `prometheus`."""
        return f"{self.name}-{place}"

    def path(self, place: str) -> Path:
        return _RUN / self.namespace(place)

    def prefix(self, place: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace(place)]

    def ip(self, place: str, *arguments: str) -> str:
        return call("ip", "-n", self.namespace(place), *arguments)

    def nft(self, rules: str) -> None:
        """Change the VPC's packet filter: all rules at once or none."""
        call(*self.prefix("vpc"), "nft", "-f", "-", text=rules)

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Sockets that this thread makes meanwhile belong to that namespace, and stay there."""
        with Path("/proc/thread-self/ns/net").open() as home, self.path(place).open() as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def add(self, place: str) -> None:
        call("ip", "netns", "add", self.namespace(place))
        self.ip(place, "link", "set", "lo", "up")

    def make(self, zones: Sequence[Zone] = ()) -> None:
        """All but the machine's interface; for a fleet, its zones and none of its machines."""
        for place in ("vpc", *NEIGHBOURS, *(() if zones else ("machine",))):
            self.add(place)
        call(*self.prefix("vpc"), "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for address in (METADATA, AWS_SERVERS, MIRROR_SERVERS):
            self.ip("vpc", "address", "add", f"{address}/32", "dev", "lo")
        for place, address in NEIGHBOURS.items():
            router = str(ipaddress.ip_interface(f"{address}/24").network[1])
            near, far = f"{place[:4]}0", self.namespace(place)
            self.ip("vpc", *f"link add {near} type veth peer name eth0 netns {far}".split())
            self.ip("vpc", "address", "add", f"{router}/24", "dev", near)
            self.ip("vpc", "link", "set", near, "up")
            self.ip(place, "address", "add", f"{address}/24", "dev", "eth0")
            self.ip(place, "link", "set", "eth0", "up")
            self.ip(place, "route", "add", "default", "via", router)
        for zone in zones:
            # or it had that of a port, and with each machine that came or went another one, while
            # the machines that stay believe in the old one for half a minute
            mac = "06:00:" + ipaddress.ip_address(zone.gateway).packed.hex(":")
            self.ip("vpc", *f"link add {zone.bridge} address {mac} type bridge".split())
            for address in (zone.gateway, zone.dns):
                self.ip("vpc", "address", "add", f"{address}/24", "dev", zone.bridge)
            self.ip("vpc", "link", "set", zone.bridge, "up")

    def plug(self, mac: str, place: str = "machine", bridge: str | None = None) -> None:
        """A machine's interface, anew: the old one ended with the machine that had it."""
        near = f"m-{place}" if bridge else "vpc0"
        for where, interface in (("vpc", near), (place, "ens5")):
            if f" {interface}@" in self.ip(where, "-o", "link"):
                self.ip(where, "link", "delete", interface)
        far = self.namespace(place)
        self.ip(
            "vpc", *f"link add {near} type veth peer name ens5 address {mac} netns {far}".split()
        )
        if bridge:
            self.ip("vpc", "link", "set", near, "master", bridge)
        else:
            for address in (GATEWAY, VPC_DNS):
                self.ip("vpc", "address", "add", f"{address}/24", "dev", near)
        self.ip("vpc", "link", "set", near, "up")

    def drop(self, place: str) -> None:
        """A namespace, with the interfaces in it."""
        if self.path(place).exists():
            call("ip", "netns", "delete", self.namespace(place))

    def remove(self) -> None:
        for path in sorted(_RUN.glob(f"{self.name}-*")):
            self.drop(path.name.removeprefix(f"{self.name}-"))


def _set_namespace(descriptor: int) -> None:
    """os.setns is Python 3.12's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
