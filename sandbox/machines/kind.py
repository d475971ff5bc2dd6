"""What the sandbox asks of every kind of machine.

The machine is the declared one, which EC2 has on record; the host (`--host`) is what runs it. Where
the sandbox itself runs is called this computer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from sandbox.aws import Account
from sandbox.processes import Process
from sandbox.vpc.addresses import Addresses, Place, Ports


class Processes(Protocol):
    """The sandbox's processes, by name."""

    def process(self, name: str) -> Process | None:
        """One that is alive."""

    def spawn(self, name: str, command: Sequence[str]) -> Process:
        """Start one; its output goes to `logs/NAME.log`."""

    def module(self, name: str, module: str, *arguments: str) -> Process:
        """Start a module of the project as a process."""


class Machine(Protocol):
    """The declared machine, and the network around it."""

    kind: ClassVar[str]
    what: ClassVar[str]
    """For people."""
    addresses: ClassVar[Addresses]

    @property
    def root(self) -> Path:
        """The machine's files."""

    def reach(self, what: Literal["proxy", "prometheus"], address: str) -> tuple[str, int]:
        """Where this computer's own programs reach what listens at `address`."""

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
