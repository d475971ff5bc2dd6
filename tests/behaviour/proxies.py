"""The servers under test: each a real process in a folder of its own, with an API of its own."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from config.settings import Settings
from host import cloud_config, proxy
from sandbox.machines.process import NOT_ROOT, UnitRunner, lay_out
from sandbox.machines.vm import image
from sandbox.machines.vm.machine import obstacle
from sandbox.processes import free_port, wait
from tests.behaviour.upstream import CANARY, Api
from tests.behaviour.wire import BALANCER, CLIENT, SERVER, SERVER_NAME, exchange
from tests.certificates import self_signed

OURS: Final = ("nginx", "apache")
DEBIAN_13: Final = (
    () if obstacle() and "CI" not in os.environ else ("Debian 13's nginx", "Debian 13's apache")
)
"""The servers that the declared machine has, run in the tree that it boots from."""

RENDERED: Final = (*OURS, *DEBIAN_13)
"""Those with the configuration of a fleet's machine: one machine's has no `/healthz`."""

BY_HAND: Final = ("nginx by hand", "apache by hand")
REQUIRED: Final = ("required nginx", "required apache")
PROMISED: Final = (*RENDERED, *BY_HAND)
"""Those that keep the promise."""

KINDS: Final = (*PROMISED, *REQUIRED)

OWN_DOCUMENT: Final = b"metrics_proxy_secret_sync_ok 1.0\n"
"""What the sync would have written for /metrics/proxy."""

_HERE: Final = Path(__file__).parent
_OPS: Final = _HERE.parents[1] / "ops/proxy"
_IN_TREE: Final = """
mount -t overlay overlay -o "lowerdir=$1" "$2"
for folder in dev tmp; do mount --bind "/$folder" "$2/$folder"; done
shift 2
exec "$@"
"""

_UNPACKING: Final = threading.Lock()


@cache
def _debian_13() -> str:
    """The tree with the servers' packages unpacked on top: `lowerdir=` of an overlay."""
    built, unpacked = image.build(), tempfile.mkdtemp(prefix="debian-13-")
    atexit.register(shutil.rmtree, unpacked)
    for package in built.packages.glob("*.deb"):
        if not package.name.startswith(("python3-", "perl")):  # large, and no part of a server
            subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
    return f"{unpacked}:{built.root}"


def in_debian_13(command: Sequence[str], mounted: Path, folder: Path, *above: Path) -> list[str]:
    """A command that runs in `folder`, not as root, in the tree that the machine boots from.

    The tree is seen at `mounted`, by this command only, with the folders of `above` on top.
    """
    with _UNPACKING:
        lower = ":".join([*map(str, above), _debian_13()])
    mounted.mkdir()
    return [
        *("unshare", "--mount", "sh", "-euc", _IN_TREE, "sh", lower, str(mounted)),
        *(*NOT_ROOT, f"--root={mounted}", f"--wd={folder}"),
        *command,
    ]


def _command(kind: str, unit: UnitRunner, folder: Path) -> list[str]:
    """The server of the unit, of this machine or of the machine's tree."""
    if kind not in DEBIAN_13:
        return unit.server_command()
    return in_debian_13(unit.command(cloud_config.PROXY_UNIT), folder / "tree", unit.root)


class StartError(Exception):
    """The server ended at once; its own words."""


def unlimited(configuration: str) -> str:
    """A configuration without limits on rate and connections, for the fuzz."""
    return re.sub(r"(?m)^\s*limit_(?:req|conn)\b.*\n", "", configuration)


class Proxy:
    """A running server of one of KINDS.

    `edit` changes its configuration before it is read. `token` None is a host without a valid one,
    `include` false one whose file with the token is not there. `more` endpoints of the API, on
    `/more-0` and so on, are there besides the usual ones. Raises `StartError`.
    """

    def __init__(
        self,
        kind: str,
        *,
        edit: Callable[[str], str] = str,
        token: str | None = CANARY,
        include: bool = True,
        more: int = 0,
    ) -> None:
        self.kind = kind
        self.server = "apache" if "apache" in kind else "nginx"
        self.port = free_port(SERVER)
        # a short name: the path of a socket has at most 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="proxy-"))
        self.api = Api(self.folder / "api")
        self._edit, self._token, self._include, self._more = edit, token, include, more
        self._process: subprocess.Popen[bytes] | None = None
        self._syslog: socket.socket | None = None
        start = {RENDERED: self._generation, BY_HAND: self._by_hand, REQUIRED: self._required}
        try:
            next(start[kinds] for kinds in start if kind in kinds)()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server at once, and remove what it left."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._syslog:
            self._syslog.shutdown(socket.SHUT_RD)  # ends its thread
        self.api.stop()
        shutil.rmtree(self.folder)

    @property
    def group(self) -> int:
        """The process group of the server and its workers."""
        assert self._process
        return self._process.pid

    @property
    def said(self) -> bytes:
        """All that the server wrote to standard output, standard error and syslog."""
        return b"".join(file.read_bytes() for file in self.folder.glob("*.log"))

    # -- kinds ---------------------------------------------------------------------------------

    def _generation(self) -> None:
        """As the sandbox starts it: the files of the user data, a generation as by the sync."""
        ports = self.api.ports
        endpoints = [
            {
                "name": "api",
                "path": "/metrics",
                "upstream": f"http://{SERVER}:{ports['api']}/metrics",
            },
            {
                "name": "workers",
                "path": "/metrics/workers",
                "upstream": f"http://{SERVER}:{ports['workers']}/metrics/workers",
            },
            {"name": "absent", "path": "/absent", "upstream": "http://absent.invalid:9464/metrics"},
            {"name": "down", "path": "/down", "upstream": f"http://{SERVER}:1/metrics"},
        ]
        cas = {"right-ca": self.api.ca, "wrong-ca": self_signed("localhost")[0], "system-ca": None}
        for name, ca in cas.items():
            upstream = f"https://localhost:{ports[name]}/metrics"
            endpoint = {"name": name, "path": f"/{name}", "upstream": upstream}
            endpoints.append(endpoint | ({"ca": ca} if ca else {}))
        for number in range(self._more):
            name, upstream = f"more-{number}", f"http://{SERVER}:{ports['api']}/metrics"
            endpoints.append({"name": name, "path": f"/{name}", "upstream": upstream})
        settings = Settings.parse(
            "test",
            {
                "subnetId": "subnet-00000000",
                "prometheusCidrs": json.dumps([f"{CLIENT}/32"]),
                "apiCidrs": '["127.0.0.0/16"]',
                "server": self.server,
                "port": str(self.port),
                "serverName": SERVER_NAME,
                "endpoints": json.dumps(endpoints),
            },
            has_token=True,
        )
        root = self.folder / "root"
        user_data = cloud_config.render(settings, "eu-central-1", "bundle")
        lay_out(user_data, root)
        state = root / "run/metrics-proxy"
        (state / "current").symlink_to("gen-1")
        (state / "proxy.prom").write_bytes(OWN_DOCUMENT)
        self.limits = proxy.limits(len(endpoints))
        text = proxy.render(settings, [f"{BALANCER}/32"])
        if self.server == "nginx":
            text = put_in(text, {"resolver 127.0.0.53 ": f"resolver {SERVER}:{ports['names']} "})
        files = {f"ca-{name}.pem": ca for name, ca in cas.items() if ca}
        self._write(state / "gen-1", text, **files)
        self._listen(root / "dev/log")
        runner = UnitRunner(root, {}, self.folder / "unused.log")
        self._run(_command(self.kind, runner, self.folder), root)

    def _by_hand(self) -> None:
        """As ops/proxy/README.md says, with addresses and folders put in."""
        text = (_OPS / f"{self.server}-prometheus-auth.conf").read_text()
        places = {
            "api-internal:9464": f"{SERVER}:{self.api.ports['api']}",
            "api-internal:3002": f"{SERVER}:{self.api.ports['workers']}",
            "9446": str(self.port),
            "10.20.0.0/16": f"{CLIENT}/32",
        }
        if self.server == "apache":
            places |= {
                "/run/": f"{self.folder}/run/",
                "-u /dev/": f"-u {self.folder}/dev/",
                "/etc/metrics-proxy/headers.lua": str(_OPS / "headers.lua"),
            }
        etc, run = self.folder / "etc", self.folder / "run/metrics-proxy-server"
        run.mkdir(parents=True)
        (self.folder / "dev").mkdir()
        self._write(etc, put_in(text, places))
        self._listen(self.folder / "dev/log")
        command = {
            "nginx": [proxy.NGINX, "-p", f"{run}/", "-c", f"{etc}/proxy.conf", "-g", "daemon off;"],
            "apache": [proxy.APACHE, "-DFOREGROUND", "-d", f"{etc}", "-f", f"{etc}/proxy.conf"],
        }
        self._run([*NOT_ROOT, *command[self.server]], self.folder)

    def _required(self) -> None:
        """The requirement's own, with addresses and folders put in."""
        text = (_HERE / f"required/{self.server}.conf").read_text()
        places = {
            "http://api:9464": f"http://{SERVER}:{self.api.ports['api']}",
            "http://api:3002": f"http://{SERVER}:{self.api.ports['workers']}",
            "9446": str(self.port),
            "10.20.0.0/16": f"{CLIENT}/32",
            "/etc/ssl/prometheus-api.crt": "certificate.pem",
            "/etc/ssl/prometheus-api.key": "key.pem",
        }
        environment = {"PROM_AUTH_TOKEN": self._token} if self._token else {}
        if self.server == "nginx" and self._token:  # as envsubst would
            places["$PROM_AUTH_TOKEN"] = self._token
        self._write(self.folder, put_in(text, places))
        command = {
            "nginx": [proxy.NGINX, "-p", f"{self.folder}", "-c", "proxy.conf", "-g", "daemon off;"],
            "apache": [proxy.APACHE, "-DFOREGROUND", "-d", f"{self.folder}", "-f", "proxy.conf"],
        }
        self._run([*NOT_ROOT, *command[self.server]], self.folder, **environment)

    # -- parts ---------------------------------------------------------------------------------

    def _write(self, folder: Path, configuration: str, **files: str) -> None:
        """What the sync would write: configuration, token and certificate."""
        folder.mkdir(exist_ok=True)
        certificate, key = self_signed(SERVER_NAME)
        files |= {"certificate.pem": certificate, "key.pem": key}
        files["proxy.conf"] = self._edit(configuration)
        files["generation.conf"] = ""  # what the sync says of itself
        if self._include:
            commands = proxy.SYNC_COMMANDS[self.server]
            line = commands["token_line"] if self._token else commands["no_token_line"]
            files["token.conf"] = line.replace("{token}", self._token or "")
        for name, text in files.items():
            (folder / name).write_text(text)

    def _listen(self, path: Path) -> None:
        """Be the socket /dev/log, into a file."""
        syslog = self._syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        syslog.bind(str(path))
        file = (self.folder / "syslog.log").open("ab", buffering=0)

        def collect() -> None:
            with syslog, file:
                while line := syslog.recv(65536):
                    file.write(line + b"\n")

        threading.Thread(target=collect, daemon=True).start()

    def _run(self, command: list[str], folder: Path, **environment: str) -> None:
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process = self._process

        def ready() -> bool:
            if process.poll() is not None:
                raise StartError(log.read_text())
            return exchange(self.port, b"GET / HTTP/1.0\r\n\r\n").end != "no handshake"

        wait(ready, f"{self.kind} to answer")


def put_in(text: str, places: Mapping[str, str]) -> str:
    """Replace each text; every one of them has to be there."""
    for old, new in places.items():
        assert old in text, old
        text = text.replace(old, new)
    return text
