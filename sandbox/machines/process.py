"""The machine as plain processes: the files of the user data below a folder, run without systemd.

A stand-in for the machine where it cannot boot. What runs is what the units say (`ExecStart=`, the
timer's interval), as the current user and without their confinement; systemd itself is stood in for
by this process: it restarts the server, runs the sync, and answers `bin/systemctl`.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import contextlib
import gzip
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final, Literal

import yaml

from host.cloud_config import PROXY_UNIT, SYNC_TIMER, SYNC_UNIT
from sandbox.aws import Account
from sandbox.machines.kind import Processes
from sandbox.processes import free_port, wait
from sandbox.tools import ROOT
from sandbox.vpc.addresses import Addresses, Place, Ports

ADDRESSES: Final = Addresses(
    vpc="127.9.0.0/16",
    subnet="127.9.46.0/24",
    api_cidr="127.9.47.0/24",
    prometheus_cidr="127.0.0.1/32",
    api="127.9.47.10",
    api_name="127.9.47.10",
)
"""Loopback addresses stand in for the VPC's: nothing leaves this computer."""

UNITS = Path("etc/systemd/system")
CONTROL = "control.sock"
_MOVED = ("/run/metrics-proxy", "/etc/metrics-proxy", "/opt/metrics-proxy")
_NOBODY = ("--map-user=65534", "--map-group=65534")
NOT_ROOT: Final = ["unshare", "--user", *_NOBODY] if os.geteuid() == 0 else []
"""Put before a server's command. On the machine it is never root: nginx would give its workers to
another user, and Apache would not start. As nobody in a user namespace it is root's own user seen
from outside, and may read these folders."""


def lay_out(user_data: bytes, root: Path) -> None:
    """Write the user data's files below `root`, in place of an older machine's."""
    shutil.rmtree(root, ignore_errors=True)
    for entry in yaml.safe_load(gzip.decompress(user_data))["write_files"]:
        file = root / entry["path"].lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(entry["content"])
    for folder in ("dev", "run/metrics-proxy", "run/metrics-proxy-server"):
        (root / folder).mkdir(parents=True)
        (root / folder).chmod(0o750)


class ProcessMachine:
    """A `Machine` of plain processes, on addresses of this computer's loopback."""

    kind: ClassVar[str] = "process"
    what: ClassVar[str] = "plain processes"
    addresses: ClassVar[Addresses] = ADDRESSES

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder = folder
        self.root = folder / "host"
        self._processes = processes

    @cached_property
    def ports(self) -> Ports:
        """Free ones, chosen once. Not the usual ones: another sandbox may begin in this moment."""
        file = self.folder / "ports.json"
        if file.exists():
            return Ports(**json.loads(file.read_text()))
        ports = Ports(
            proxy=free_port("0.0.0.0"),
            prometheus=free_port("127.0.0.1"),
            api=free_port(ADDRESSES.api),
            workers=free_port(ADDRESSES.api),
        )
        file.write_text(json.dumps(asdict(ports)))
        return ports

    def reach(self, what: Literal["proxy", "prometheus"], address: str) -> tuple[str, int]:
        return address, getattr(self.ports, what)

    def prefix(self, _: Place) -> list[str]:
        return []

    def at(self, _: Place) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def prepare(self, _: object) -> None:
        """Nothing to prepare."""

    def run(self, account: Account, instance: str, *, new: bool) -> None:
        if new:
            answer = account.client("ec2").describe_instance_attribute(
                InstanceId=instance, Attribute="userData"
            )
            lay_out(base64.b64decode(answer["UserData"]["Value"]), self.root)
        arguments = ["--root", str(self.root), "--account", str(self.folder / "aws.json")]
        arguments += ["--instance", instance]
        arguments += ["--access-log", str(self.folder / "logs" / "access.log")]
        self._processes.module("host", "sandbox.machines.process", *arguments)

    def update(self, *_: object) -> None:
        """Security groups are recorded, not enforced."""

    def remove(self) -> None:
        """The folder is all there is."""


class Unit(configparser.ConfigParser):
    """A unit file, as far as this stand-in reads it: of a repeated key it knows the last value."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


class UnitRunner:
    """Runs one machine's units until it is told to stop."""

    def __init__(self, root: Path, credentials: dict[str, str], access_log: Path) -> None:
        self.root = root
        self._access_log = access_log
        self._server: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._environment = {
            **os.environ,
            **credentials,
            "PATH": f"{Path(__file__).with_name('bin')}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SANDBOX_PYTHON": sys.executable,
            "SANDBOX_MACHINE": str(root),
            "RUNTIME_DIRECTORY": str(root / "run/metrics-proxy"),
        }

    def unit(self, name: str) -> configparser.ConfigParser:
        parser = Unit(strict=False, interpolation=None)
        folder = self.root / UNITS
        parser.read([folder / name, *sorted((folder / f"{name}.d").glob("*.conf"))])
        return parser

    def command(self, unit: str, key: str = "ExecStart") -> list[str]:
        """A unit's command, with the machine's folders moved below the root."""
        words = shlex.split(self.unit(unit)["Service"][key])
        words = [f"{self.root}{w}" if w.startswith(_MOVED) else w for w in words]
        return [sys.executable if word == "/usr/bin/python3" else word for word in words]

    def server_command(self) -> list[str]:
        """The server's `ExecStart=`, as a user that is not root."""
        return [*NOT_ROOT, *self.command(PROXY_UNIT)]

    def run(self) -> None:
        """The sync at the timer's interval, until `stop`."""
        threading.Thread(target=self._collect_access_log, daemon=True).start()
        threading.Thread(target=self._answer_systemctl, daemon=True).start()
        threading.Thread(target=self._keep_server, daemon=True).start()
        interval = float(self.unit(SYNC_TIMER)["Timer"]["OnUnitInactiveSec"])
        command = [*NOT_ROOT, *self.command(SYNC_UNIT)]
        try:
            while not self._stopping.is_set():
                self._sync(command)
                self._stopping.wait(interval)
        finally:
            self._stopping.set()
            self._stop_server()

    def _sync(self, command: list[str]) -> None:
        """Once; whatever it leaves behind ends with it, as a unit's control group does."""
        sync = subprocess.Popen(
            command, env=self._environment, cwd=self.root, start_new_session=True
        )
        sync.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sync.pid, signal.SIGKILL)

    def _stop_server(self) -> None:
        with self._lock:
            if self._server is None:
                return
            stop = self.unit(PROXY_UNIT)["Service"]["KillSignal"]
            self._server.send_signal(signal.Signals[stop])
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(10)
            self._kill_server()

    def _kill_server(self) -> None:
        """As systemd ends a unit's control group: also workers that outlived their master."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()

    def stop(self, *_: object) -> None:
        self._stopping.set()

    def reload_or_restart(self) -> str:
        """Reload the server, or start it; what went wrong, or nothing."""
        with self._lock:
            if self._server is not None and self._server.poll() is None:
                return self._reload(self._server)
            return self._start()

    def _start(self) -> str:
        self._kill_server()
        server = subprocess.Popen(self.server_command(), cwd=self.root, start_new_session=True)
        self._server = server
        name = Path(self.command(PROXY_UNIT)[0]).name
        comm = Path(f"/proc/{server.pid}/comm")
        # Type=exec: started when the program is there
        wait(lambda: comm.read_text().strip() == name or server.poll() is not None, name)
        status = server.returncode
        return "" if status is None else f"{PROXY_UNIT} ended with status {status}"

    def _reload(self, server: subprocess.Popen[bytes]) -> str:
        """Run the unit's command beside the server; what went wrong, or nothing."""
        words = self.command(PROXY_UNIT, "ExecReload")
        words = [str(server.pid) if word == "$MAINPID" else word for word in words]
        status = subprocess.run(words, check=False).returncode
        return f"{PROXY_UNIT}: ExecReload ended with {status}" if status else ""

    def _keep_server(self) -> None:
        """`Restart=always`, `RestartSec=1`."""
        while not self._stopping.wait(1):
            with self._lock:
                if self._server is not None and self._server.poll() is not None:
                    print(f"{PROXY_UNIT} ended with {self._server.returncode}; restart", flush=True)
                    self._start()

    def _collect_access_log(self) -> None:
        """What /dev/log is to the server: lines for the journal."""
        os.chdir(self.root)  # a relative path: a socket's may have 107 bytes
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log,
            self._access_log.open("ab", buffering=0) as file,
        ):
            log.bind("dev/log")
            while True:
                file.write(log.recv(8192).rstrip(b"\n") + b"\n")

    def _answer_systemctl(self) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(CONTROL)
            control.listen()
            while True:
                peer, _ = control.accept()
                with peer:
                    peer.sendall(self.reload_or_restart().encode())


def systemctl(arguments: list[str]) -> int:
    """The client side of the stand-in: strict, one verb for one unit."""
    if arguments != ["reload-or-restart", PROXY_UNIT]:
        print(f"systemctl stand-in: refused: {shlex.join(arguments)}", file=sys.stderr)
        return 1
    os.chdir(os.environ["SANDBOX_MACHINE"])
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(30)
        control.connect(CONTROL)
        problem = control.makefile().read()
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--account", type=Path, required=True, help="the embedded AWS' ready file")
    parser.add_argument("--instance", required=True)
    parser.add_argument("--access-log", type=Path, required=True)
    options = parser.parse_args()
    account = Account.read(options.account)
    role = account.instance_credentials(options.instance)
    credentials = account.environment() | {
        "AWS_ACCESS_KEY_ID": role["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": role["SecretAccessKey"],
        "AWS_SESSION_TOKEN": role["Token"],
    }
    runner = UnitRunner(options.root.resolve(), credentials, options.access_log.resolve())
    signal.signal(signal.SIGTERM, runner.stop)
    runner.run()


if __name__ == "__main__":
    if sys.argv[1:2] == ["systemctl"]:
        sys.exit(systemctl(sys.argv[2:]))
    main()
