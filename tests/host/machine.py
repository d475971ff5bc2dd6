"""A machine for tests of the sync: its files, Secrets Manager (moto), an API and a real server."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from prometheus_client.parser import text_string_to_metric_families

from config.settings import Settings
from host import cloud_config, proxy
from sandbox.machines.process import NOT_ROOT, UnitRunner, lay_out
from sandbox.processes import free_port
from tests.certificates import self_signed

SECOND = "second-token"
PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

RELOAD = """
echo x >> {folder}/reloads
[ "$(cat {folder}/status)" = 0 ] || exit "$(cat {folder}/status)"
pid=$(cat {folder}/pid 2> /dev/null)
if [ "$pid" ] && ! grep -qs '^State:.Z' /proc/$pid/status && kill -{signal} "$pid" 2> /dev/null
then exit 0; fi
cd {root} || exit
setsid {command} < /dev/null >> {folder}/server.log 2>&1 &
echo $! > {folder}/pid
"""
"""Stands in for systemd's reload-or-restart: what the unit says, and no restart by itself."""


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Machine:
    """A machine's folders, its secrets, and an API that takes `tokens`."""

    def __init__(self, folder: Path, moto_url: str, server: str = "nginx") -> None:
        self.folder, self.server = folder, server
        self.root = folder / "root"
        self.run_folder = self.root / "run/metrics-proxy"
        self.reloads, self.reload_status = folder / "reloads", folder / "status"
        self.reload_status.write_text("0")
        self.tokens = {"first-token"}
        self.answers: dict[str, int] = {}
        """By token, in place of 200 and 401."""
        self.types: dict[str, str | None] = {}
        """By token, in place of what Prometheus knows."""
        self.status: Callable[[str], int] = self._status
        """What the API answers to a token."""
        self.asked: list[str] = []
        self._environment = {
            "PATH": os.environ["PATH"],
            # a killed sync leaves its scratch folder behind; on the VM it goes with PrivateTmp=
            "TMPDIR": str(folder / "tmp"),
            "RUNTIME_DIRECTORY": str(self.run_folder),
            "AWS_ENDPOINT_URL": moto_url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        (folder / "tmp").mkdir()
        self.secrets = boto3.client(
            "secretsmanager",
            "eu-central-1",
            endpoint_url=moto_url,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        self._start_api()
        self.port = free_port("127.0.0.1")
        upstream = f"http://127.0.0.1:{self.api.server_port}/metrics"
        self.config = {
            "subnetId": "subnet-12345678",
            "prometheusCidrs": '["10.20.0.0/16"]',
            "apiCidrs": '["127.0.0.0/24"]',
            "server": server,
            "port": str(self.port),
            "endpoints": json.dumps([{"name": "api", "path": "/m", "upstream": upstream}]),
        }
        self.settings = Settings.parse("dev", self.config, has_token=True)
        self.names = {s: f"{folder.name}/{s}" for s in ("token", "bundle")}
        lay_out(cloud_config.render(self.settings, "eu-central-1", self.names["bundle"]), self.root)
        runner = UnitRunner(self.root, {}, folder / "unused")
        self.sync_command = [*NOT_ROOT, *runner.command(cloud_config.SYNC_UNIT)]
        self._config = Path(self.sync_command[-2])
        self.reload_script = RELOAD.format(
            folder=folder,
            root=self.root,
            signal=cloud_config.SERVERS[server]["reload"],
            command=" ".join(f"'{word}'" for word in runner.command(cloud_config.PROXY_UNIT)),
        )
        configure(self, reload=["sh", "-c", self.reload_script])
        self.bundle = proxy.bundle(self.settings, self.names["token"])
        self.bundle["certificate"], self.bundle["key"] = self_signed()
        for name in self.names.values():
            self.secrets.create_secret(Name=name)
        self.put("first-token", configuration=self.bundle["configuration"])

    def _start_api(self) -> None:
        machine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                machine.asked.append(token)
                self.send_response(machine.status(token))
                if machine.answers.get(token) == 302:
                    self.send_header("Location", self.headers["Host"])
                if kind := machine.types.get(token, PROMETHEUS_TYPE):
                    self.send_header("Content-Type", kind)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.api.serve_forever, daemon=True).start()

    def _status(self, token: str) -> int:
        return self.answers.get(token, 200 if token in self.tokens else 401)

    def put(self, token: str | bytes | None = None, **bundle: Any) -> None:
        """New versions of the secrets."""
        if token is not None:
            kind = "SecretString" if isinstance(token, str) else "SecretBinary"
            self.secrets.put_secret_value(SecretId=self.names["token"], **{kind: token})
        if bundle:
            value = json.dumps({**self.bundle, **bundle})
            self.secrets.put_secret_value(SecretId=self.names["bundle"], SecretString=value)

    def put_endpoints(self, *endpoints: dict[str, Any]) -> None:
        """A bundle for other endpoints, as the program renders it."""
        text = {**self.config, "endpoints": json.dumps(endpoints)}
        changed = proxy.bundle(Settings.parse("dev", text, has_token=True), self.names["token"])
        self.bundle |= changed
        self.put(**{key: value for key, value in changed.items() if key != "token"})

    def sync(self, command: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command or self.sync_command,
            env=self._environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def stop(self) -> None:
        """End the server and the API."""
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int((self.folder / "pid").read_text()), signal.SIGKILL)
        self.api.shutdown()
        self.api.server_close()

    def in_use(self, name: str) -> str:
        return (self.run_folder / "current" / name).read_text()

    def token(self) -> str:
        return self.in_use("token.conf").partition("Bearer ")[2].partition('"')[0]

    def reloaded(self) -> int:
        return len(self.reloads.read_text().split()) if self.reloads.exists() else 0

    def scrape(self, path: str = "/m", ca: str | None = None, *, verify: bool = True) -> int:
        """The status that a client gets if it trusts `ca`; 0 without a connection."""
        context = ssl.create_default_context(cadata=ca or self.in_use("certificate.pem"))
        context.check_hostname = False
        if not verify:
            context.verify_mode = ssl.CERT_NONE
        client = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=10)
        try:
            client.request("GET", path)
            return int(client.getresponse().status)
        except OSError:
            return 0
        finally:
            client.close()

    def reasons(self) -> set[str]:
        failed = metric(self, "sync_failed")
        return {reason for (reason,), value in failed.items() if value}


@pytest.fixture
def machine(tmp_path: Path, moto_url: str, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """One with nginx, or with the server that the test names by an indirect parameter."""
    made = Machine(tmp_path, moto_url, getattr(request, "param", "nginx"))
    yield made
    made.stop()


@pytest.fixture
def synced(machine: Machine) -> Machine:
    ok(machine)
    return machine


def settings(host: Machine) -> dict[str, Any]:
    return dict(json.loads(host._config.read_text()))


def configure(host: Machine, **changes: Any) -> None:
    host._config.write_text(json.dumps(settings(host) | changes))


def on_reload(host: Machine, script: str) -> None:
    """Do this first; `$sync` is the sync's process."""
    sync = "sync=$(cut -d' ' -f4 /proc/$PPID/stat)"
    configure(host, reload=["sh", "-c", f"{sync}; {script}; {host.reload_script}"])


def offer(host: Machine, token: str = SECOND) -> None:
    host.tokens.add(token)
    host.put(token=token)


def forget(host: Machine) -> None:
    """As after an hour: what failed may be tried again."""
    file = host.run_folder / "state.json"
    state = json.loads(file.read_text())
    assert state["failures"]
    aged = {
        digest: [reason, said, when - 3601]
        for digest, (reason, said, when) in state["failures"].items()
    }
    file.write_text(json.dumps(state | {"failures": aged}))


def generations(host: Machine) -> set[str]:
    return {path.name for path in host.run_folder.glob("gen-*")}


def ok(host: Machine) -> str:
    """A sync without a complaint, but for what it says of the API, and of what was so before."""
    done = host.sync()
    known = (": API answers ", ": no ", ": not served: ")
    complaints = [line for line in done.stderr.splitlines() if not any(it in line for it in known)]
    assert (done.returncode, done.stdout, complaints) == (0, "", []), done.stderr
    assert host.reasons() == set()
    return done.stderr


def fails(host: Machine, *reasons: str) -> str:
    done = host.sync()
    assert done.returncode == 1, done.stderr
    assert host.reasons() == set(reasons), done.stderr
    return done.stderr


def metric(host: Machine, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one metric by the values of their labels."""
    text = (host.run_folder / "proxy.prom").read_text()
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"metrics_proxy_{name}"
    }


def soon(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


PYTHON = sys.executable
