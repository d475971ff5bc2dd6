"""Names of upstreams that move, vanish, or whose resolver is slow, on a machine of its own.

Each test runs in a network and a mount namespace of its own, where 127.0.0.53 is a stand-in for
systemd-resolved: nginx asks it by `resolver`, Apache by the C library. What systemd-resolved itself
does (names from /etc/hosts for nginx, stale answers) is seen on the booted machine, in tests/vm.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from host import cloud_config, proxy
from sandbox.machines.process import UnitRunner, lay_out
from sandbox.processes import wait
from tests.certificates import self_signed

NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
PORT = 9446
ADDRESSES = {"one": "127.0.1.1", "two": "127.0.1.2"}
STALE_AFTER = 5.5
"""Seconds: systemd-resolved gives its DNS servers 5 s before it answers what it had."""


@pytest.mark.parametrize("server", ["nginx", "apache"])
def test_names_that_move_are_followed(server: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*NAMESPACES, sys.executable, __file__, server, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    print(found)
    broken = {"nginx": 502, "apache": 500}[server]  # mod_proxy's status for a failed lookup
    assert found["at first"] == {"api": "200 one", "other": "200 one", "absent": broken}
    assert found["moved"] < 10, "seconds until the other address answers"
    assert found["slow resolver"] == ["200 two"] * 2
    assert found["refusing resolver"] == broken
    assert found["back"] == "200 two"
    if server == "apache":
        assert found["from /etc/hosts"] == "200 two"
    assert found["workers"], "the same workers all the time: nothing was reloaded"


class Resolver(threading.Thread):
    """Answers A queries of known names, TTL 1 s, after `delay` seconds, until it is stopped."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.names, self.delay = names, 0.0
        self._stop_event = threading.Event()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.53", 53))
        self._socket.settimeout(0.1)
        self.start()

    def run(self) -> None:
        with self._socket:
            while not self._stop_event.is_set():
                try:
                    question = self._socket.recvfrom(512)
                except TimeoutError:
                    continue
                threading.Timer(self.delay, self._answer, question).start()

    def stop(self) -> None:
        """From here on the port refuses."""
        self._stop_event.set()
        self.join()

    def _answer(self, query: bytes, client: tuple[str, int]) -> None:
        end = query.index(b"\0", 12) + 5
        labels, name = query[12 : end - 5], ""
        while labels:
            name, labels = f"{name}.{labels[1 : labels[0] + 1].decode()}", labels[labels[0] + 1 :]
        address = self.names.get(name[1:].lower())
        wanted = address is not None and query[end - 4 : end - 2] == b"\0\1"
        flags = 0x8180 if address else 0x8183  # a name that is not there: NXDOMAIN
        answer = query[:2] + struct.pack(">5H", flags, 1, int(wanted), 0, 0) + query[12:end]
        if wanted and address:
            answer += b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 1, 4) + socket.inet_aton(address)
        with contextlib.suppress(OSError):  # stopped meanwhile
            self._socket.sendto(answer, client)


def serve(name: str, address: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(name.encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer((address, 9464), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def drain(log: socket.socket) -> None:
    """A full socket would hold the server up."""
    while log.recv(8192):
        pass


class Proxy:
    """A server as the sandbox starts it, with names for upstreams."""

    def __init__(self, server: str, folder: Path) -> None:
        hosts = {
            "api": "api-internal",
            "other": "other.example.internal",
            "absent": "absent.internal",
        }
        if server == "apache":
            hosts["hosts"] = "from-hosts"
        settings = Settings.parse(
            "test",
            {
                "subnetId": "subnet-00000000",
                "prometheusCidrs": '["127.0.0.1/32"]',
                "apiCidrs": '["127.0.0.0/16"]',
                "server": server,
                "endpoints": json.dumps(
                    [
                        {
                            "name": name,
                            "path": f"/{name}",
                            "upstream": f"http://{host}:9464/metrics",
                        }
                        for name, host in hosts.items()
                    ]
                ),
            },
            has_token=True,
        )
        root = folder / "root"
        user_data = cloud_config.render(settings, "eu-central-1", "bundle")
        lay_out(user_data, root)
        generation = root / "run/metrics-proxy/gen-1"
        generation.mkdir()
        (generation.parent / "current").symlink_to("gen-1")
        self._ca, key = self_signed("proxy")
        token = proxy.SYNC_COMMANDS[server]["token_line"].replace("{token}", "token")
        files = {"proxy.conf": proxy.render(settings), "token.conf": token, "generation.conf": ""}
        for name, text in (files | {"certificate.pem": self._ca, "key.pem": key}).items():
            (generation / name).write_text(text)
        log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        os.chdir(root)  # a socket's path may have 107 bytes
        log.bind("dev/log")
        threading.Thread(target=drain, args=(log,), daemon=True).start()
        command = UnitRunner(root, {}, folder / "unused").server_command()
        self._process = subprocess.Popen(command, stderr=(folder / "log").open("w"), stdout=2)
        wait(lambda: self.get("absent") is not None, "the server", 20)

    def get(self, name: str) -> object:
        """`200` and the document, another status, or None while nothing listens."""
        context = ssl.create_default_context(cadata=self._ca)
        context.check_hostname = False
        connection = HTTPSConnection("127.0.0.1", PORT, context=context, timeout=15)
        try:
            connection.request("GET", f"/{name}")
            answer = connection.getresponse()
            text = answer.read().decode()
        except ConnectionRefusedError:
            return None
        finally:
            connection.close()
        return f"200 {text}" if answer.status == 200 else answer.status

    def workers(self) -> set[str]:
        pid = self._process.pid
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def main(server: str, folder: Path) -> None:
    """The whole story, inside the namespaces; what was found, as JSON."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, text in {
        "resolv.conf": "nameserver 127.0.0.53\n",
        "hosts": f"127.0.0.1 localhost\n{ADDRESSES['two']} from-hosts\n",
    }.items():
        (folder / name).write_text(text)
        target = Path("/etc", name).resolve()
        subprocess.run(["mount", "--bind", folder / name, target], check=True)
    for name, address in ADDRESSES.items():
        serve(name, address)
    names = {"api-internal": ADDRESSES["one"], "other.example.internal": ADDRESSES["one"]}
    resolver = Resolver(names)
    running = Proxy(server, folder)
    found: dict[str, object] = {}
    try:
        workers = running.workers()
        found["at first"] = {name: running.get(name) for name in ("api", "other", "absent")}
        names["api-internal"], began = ADDRESSES["two"], time.monotonic()
        wait(lambda: running.get("api") == "200 two", "the other address", 30)
        found["moved"] = time.monotonic() - began
        resolver.delay = STALE_AFTER
        time.sleep(3)  # nothing remembers an answer for longer than valid=, 2 s
        found["slow resolver"] = [running.get("api") for _ in range(2)]
        resolver.stop()
        wait(lambda: running.get("api") != "200 two", "the answer to be forgotten", 30)
        found["refusing resolver"] = running.get("api")
        resolver = Resolver(names)
        wait(lambda: running.get("api") == "200 two", "the resolver to be asked again", 30)
        found["back"] = running.get("api")
        found["from /etc/hosts"] = running.get("hosts")
        found["workers"] = workers <= running.workers()
    finally:
        running.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
