"""What the sandbox asks of a place that runs the declared machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from sandbox.aws import Account
from sandbox.processes import Process

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
class Ports:
    """The TCP ports that everybody listens on."""

    proxy: int
    prometheus: int
    api: int
    workers: int


class Processes(Protocol):
    """The sandbox's processes, by name."""

    def process(self, name: str) -> Process | None:
        """One that is alive."""

    def spawn(self, name: str, command: Sequence[str]) -> Process:
        """Start one; its output goes to `logs/NAME.log`."""

    def module(self, name: str, module: str, *arguments: str) -> Process:
        """Start a module of the project as a process."""


class Host(Protocol):
    """One machine, and the network around it."""

    kind: ClassVar[str]
    what: ClassVar[str]
    """For people."""
    addresses: ClassVar[Addresses]

    @property
    def root(self) -> Path:
        """The machine's files."""

    def reach(self, what: Literal["proxy", "prometheus"], address: str) -> tuple[str, int]:
        """Where this machine's own programs reach what listens at `address`."""

    @property
    def ports(self) -> Ports: ...

    def prefix(self, place: Place) -> list[str]:
        """What to put before a command that is to run there."""

    def at(self, place: Place) -> AbstractContextManager[object]:
        """Sockets of this thread are made there meanwhile."""

    def prepare(self, step: Callable[[str], AbstractContextManager[None]]) -> None:
        """Before anything else is up."""

    def run(self, account: Account, instance: str, *, new: bool) -> None:
        """Run an instance of the embedded EC2: a new one, or one that has ended anew.

        Returns once it was started, not when it serves.
        """

    def update(self, account: Account, instance: str) -> None:
        """Enforce what may have changed in EC2 while the machine runs."""

    def remove(self) -> None:
        """Leave nothing behind, when all processes have ended."""
