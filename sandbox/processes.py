"""Processes that outlive the command that started them, known by pid and start time."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
"""Our own, which would stay zombies if nobody asked for their status."""


@dataclass(frozen=True)
class Process:
    """A process. The start time tells it from a later one of the same pid."""

    pid: int
    started: int
    """Field 22 of /proc/PID/stat: clock ticks since the machine booted."""

    @classmethod
    def adopt(cls, child: subprocess.Popen[bytes]) -> Process:
        """A child that is meant to outlive this program."""
        _CHILDREN[child.pid] = child
        return cls(child.pid, _started(child.pid) or 0)

    def alive(self) -> bool:
        return _started(self.pid) == self.started

    def signal(self, number: int) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, seconds: float = 20) -> None:
        """Terminate it; kill it if it has not ended by then."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            wait(lambda: not self.alive(), f"process {self.pid} to end", seconds)
        self.signal(signal.SIGKILL)
        if child := _CHILDREN.pop(self.pid, None):
            child.wait()


def _started(pid: int) -> int | None:
    """The start time, or None if there is no such process or only its zombie."""
    if child := _CHILDREN.get(pid):
        child.poll()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def start(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Process:
    """Start a process in a session of its own; its output goes to `log`."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Process.adopt(child)


def wait(condition: Callable[[], T], what: str, seconds: float = 60) -> T:
    """Wait for a condition to be true and return its value; `TimeoutError` names it."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)


def free_port(address: str) -> int:
    """Some TCP port of that address that is free.

    Not one of those that the kernel gives to connections (32768 and up): it could be gone before
    somebody listens there.
    """
    for port in (20_000 + secrets.randbelow(12_000) for _ in range(50)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free TCP port on {address}")


def listens(address: str, port: int) -> bool:
    """Whether somebody takes TCP connections there."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True
