"""Who is where in the network around the machine, and on which ports."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

Place = Literal["api", "prometheus"]
"""Who stands somewhere in the network beside the machine."""


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """The network that the program is told to deploy into."""

    vpc: str
    subnet: str
    api_cidr: str
    prometheus_cidr: str
    api: str
    """Where the API listens."""
    api_name: str
    """How upstreams call it."""


@dataclass(frozen=True, kw_only=True)
class Zone:
    """An availability zone, and the subnet in it."""

    letter: str
    subnet: str

    @property
    def bridge(self) -> str:
        """The interface of the VPC that is the subnet."""
        return f"zone-{self.letter}"

    @property
    def gateway(self) -> str:
        return str(ipaddress.IPv4Network(self.subnet)[1])

    @property
    def dns(self) -> str:
        return str(ipaddress.IPv4Network(self.subnet)[2])


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The TCP ports that everybody listens on."""

    proxy: int
    prometheus: int
    api: int
    workers: int
