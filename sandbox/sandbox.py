"""The whole system on one machine: what `python -m sandbox` brings up, asks and takes down."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import yaml

from config.settings import NAMESPACE
from monitoring.scrape import CA_FILE
from sandbox import api, aws, host_process
from sandbox.engine import STACK, Engine
from sandbox.processes import Process, free_port, start, wait
from sandbox.tools import ROOT, prometheus

REGION: Final = "eu-central-1"
# Loopback addresses stand in for the VPC's: every user may use them; nothing leaves the machine.
VPC: Final = "127.9.0.0/16"
SUBNET: Final = "127.9.46.0/24"
API_CIDR: Final = "127.9.47.0/24"
API_ADDRESS: Final = "127.9.47.10"
PROMETHEUS_CIDR: Final = "127.0.0.1/32"
SYNC_INTERVAL: Final = 2

Progress = Callable[[str, float], object]
"""Told of each step that ended: what it was, and its seconds."""


class SandboxError(Exception):
    """What an operator has to know, in one line."""


class Sandbox:
    """One sandbox, whose whole state lies below `folder`."""

    def __init__(self, folder: Path, progress: Progress = lambda *_: None) -> None:
        self.folder = folder.resolve()
        self.logs = self.folder / "logs"
        self.api = self.folder / "api"
        self.root = self.folder / "host"
        self._prometheus = self.folder / "prometheus"
        self._state_file = self.folder / "sandbox.json"
        self._progress = progress

    # -- state ---------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        return self._state_file.exists()

    @cached_property
    def state(self) -> dict[str, Any]:
        """Ports, and the processes by name."""
        if self.exists:
            return dict(json.loads(self._state_file.read_text()))
        return {"processes": {}}

    def _save(self) -> None:
        part = self._state_file.with_suffix(".part")
        part.write_text(json.dumps(self.state, indent=1))
        part.replace(self._state_file)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise SandboxError(f"another command is at work in {self.folder}") from None
        finally:
            os.close(lock)

    def process(self, name: str) -> Process | None:
        """A process of the sandbox that is alive."""
        record = self.state["processes"].get(name)
        found = Process(**record) if record else None
        return found if found and found.alive() else None

    def _keep(self, name: str, process: Process) -> None:
        self.state["processes"][name] = asdict(process)
        self._save()

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._progress(what, time.monotonic() - began)

    @property
    def account(self) -> aws.Account:
        return aws.Account.read(self.folder / "aws.json")

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.folder, self.account)

    # -- up ------------------------------------------------------------------------------------

    def up(
        self,
        server: str | None = None,
        token: str | None = None,
        output: Callable[[str], object] | None = None,
    ) -> None:
        """Bring everything up, or up to date.

        `server` is nginx for a new sandbox, and stays as it is for another, if it is not named;
        `token` is the admin token of a new sandbox.
        """
        for folder in (self.logs, self.api, self._prometheus):
            folder.mkdir(parents=True, exist_ok=True)
        self._aws()
        self._sample_api()
        with self._step("pulumi up"):
            self._configure(server, token)
            self.engine.up(output)
        self._host()
        self._start_prometheus()
        with self._step("first scrapes"):
            wait(lambda: all(self.scrapes().values()), "Prometheus to scrape all targets")

    def _aws(self) -> None:
        if self.process("aws"):
            return
        if self.exists and (self.folder / "pulumi").exists():
            raise SandboxError(
                "the embedded AWS has ended, and its memory with it; run: down, then up"
            )
        with self._step("embedded AWS"):
            child, _ = aws.start(self.folder, region=REGION, vpc_cidr=VPC, subnet_cidr=SUBNET)
            self._keep("aws", Process.adopt(child))

    def _sample_api(self) -> None:
        if self.process("api"):
            return
        with self._step("sample API"):
            ports = self.state.setdefault(
                "api", [free_port(API_ADDRESS, 9464), free_port(API_ADDRESS, 3002)]
            )
            if not (self.api / "tokens.json").exists():
                api.accept(self.api, [])
            command = [sys.executable, "-m", "sandbox.api", "--address", API_ADDRESS]
            command += ["--metrics-port", str(ports[0]), "--workers-port", str(ports[1])]
            command += ["--folder", str(self.api)]
            self._keep("api", self._start(command, "api"))
            for port in ports:
                wait(partial(_listens, API_ADDRESS, port), "the sample API")

    def _configure(self, server: str | None, token: str | None) -> None:
        """The stack file of a new sandbox; an older one's is the user's, but for the server."""
        engine = self.engine
        if "port" in self.state:
            engine.configure({"server": server} if server else {})
            return
        self.state["port"] = free_port("0.0.0.0", 9446)
        ports = dict(zip(("api", "workers"), self.state["api"], strict=True))
        paths = {"api": "/metrics", "workers": "/metrics/workers"}
        engine.configure(
            {
                "aws:region": REGION,
                "subnetId": self.account.subnet_id,
                "prometheusCidrs": [PROMETHEUS_CIDR],
                "apiCidrs": [API_CIDR],
                "endpoints": [
                    {
                        "name": name,
                        "path": path,
                        "upstream": f"http://{API_ADDRESS}:{ports[name]}{path}",
                    }
                    for name, path in paths.items()
                ],
                "server": server or "nginx",
                "port": self.state["port"],
                "instanceType": "t4g.micro" if platform.machine() == "aarch64" else "t3.micro",
                "syncInterval": SYNC_INTERVAL,
                "grafana": {"folderTitle": "SBA sandbox"},
            }
        )
        token = token or secrets.token_urlsafe(32)
        engine.set_secret("adminToken", token)
        api.accept(self.api, [api.digest(token)])
        self._save()

    def _host(self) -> None:
        """Run the machine that the embedded EC2 has on record; a replaced one anew."""
        instance = str(self.engine.outputs()["instanceId"])
        if self.process("host") and self.state.get("instance") == instance:
            return
        with self._step("host as plain processes"):
            if old := self.process("host"):
                old.stop()
            answer = self.account.client("ec2").describe_instance_attribute(
                InstanceId=instance, Attribute="userData"
            )
            host_process.lay_out(base64.b64decode(answer["UserData"]["Value"]).decode(), self.root)
            command = [sys.executable, "-m", "sandbox.host_process", "--root", str(self.root)]
            command += ["--account", str(self.folder / "aws.json"), "--instance", instance]
            command += ["--access-log", str(self.logs / "access.log")]
            self.state["instance"] = instance
            self._keep("host", self._start(command, "host"))
            wait(lambda: self.proxy_metrics() is not None, "the proxy to answer (logs/host.log)")

    def _start_prometheus(self) -> None:
        """Prometheus with the stack's own scrape config."""
        outputs = self.engine.outputs()
        (self._prometheus / CA_FILE).write_text(outputs["caCertificate"])
        (self._prometheus / "metrics-proxy.yml").write_text(outputs["scrapeConfig"])
        main = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_config_files": ["metrics-proxy.yml"],
        }
        (self._prometheus / "prometheus.yml").write_text(yaml.safe_dump(main))
        if running := self.process("prometheus"):
            running.signal(signal.SIGHUP)
            return
        with self._step("Prometheus"):
            port = self.state.setdefault("prometheus", free_port("127.0.0.1", 9090))
            command = [prometheus(), f"--config.file={self._prometheus / 'prometheus.yml'}"]
            command += [f"--storage.tsdb.path={self._prometheus / 'data'}"]
            command += [f"--web.listen-address=127.0.0.1:{port}"]
            self._keep("prometheus", self._start(command, "prometheus"))
            wait(lambda: _listens("127.0.0.1", port), "Prometheus (logs/prometheus.log)")

    def _start(self, command: list[str], log: str) -> Process:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
        return start(command, self.logs / f"{log}.log", environment)

    # -- questions -----------------------------------------------------------------------------

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.state['prometheus']}"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query: a list of `{"metric": labels, "value": [time, text]}`."""
        url = f"{self.prometheus_url}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(url, timeout=10) as answer:
            return list(json.load(answer)["data"]["result"])

    def scrapes(self) -> dict[str, bool]:
        """Scrape target → whether its last scrape succeeded."""
        wanted = {endpoint["name"]: False for endpoint in self.contract()["endpoints"]}
        wanted["proxy"] = False
        for sample in self.query("up"):
            name = sample["metric"].get("endpoint", "proxy")
            wanted[name] = sample["value"][1] == "1"
        return wanted

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """GET a path of the proxy as Prometheus does: with the CA, without a token."""
        outputs = self.engine.outputs()
        context = ssl.create_default_context(cadata=outputs["caCertificate"])
        request = urllib.request.Request(outputs["proxyUrl"] + path, headers=headers or {})
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=10) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def proxy_metrics(self) -> str | None:
        """The proxy's own document, None while it does not answer."""
        try:
            status, text = self.get("/metrics/proxy")
        except OSError:
            return None
        return text if status == 200 else None

    def contract(self) -> dict[str, Any]:
        """Where everything is, as `--json` prints it."""
        outputs, account = self.engine.outputs(), self.account
        config = yaml.safe_load(self.engine.config_file.read_text())["config"]
        return {
            "proxy": {
                "server": config[f"{NAMESPACE}:server"],
                "url": outputs["proxyUrl"],
                "address": outputs["privateIp"],
                "port": self.state["port"],
                "server_name": config.get(f"{NAMESPACE}:serverName", "prometheus-api.local"),
                "ca_file": str(self._prometheus / CA_FILE),
            },
            "endpoints": [
                {"name": e["name"], "path": e["path"]} for e in config[f"{NAMESPACE}:endpoints"]
            ],
            "api": {"requests_log": str(self.api / "requests.jsonl")},
            "prometheus": {"url": self.prometheus_url},
            "aws": {
                "endpoint_url": account.endpoint_url,
                "region": account.region,
                "access_key_id": account.access_key_id,
                "secret_access_key": account.secret_access_key,
                "token_secret_arn": outputs["tokenSecretArn"],
            },
            "pulumi": {
                "backend": self.engine.backend.as_uri(),
                "stack": STACK,
                "project": str(self.engine.project),
            },
            "host": {"kind": "process", "root": str(self.root)},
            "grafana": {"provisioning": str(self.engine.provisioning)},
        }

    # -- rotate, down --------------------------------------------------------------------------

    def rotate_token(self, token: str | None = None) -> None:
        """As docs/rotation.md says: accept both, deploy, see it adopted, revoke the old one."""
        token = token or secrets.token_urlsafe(32)
        with self._step("the API accepts both tokens"):
            api.accept(self.api, [*api.accepted(self.api), api.digest(token)])
        with self._step("pulumi up with the new token"):
            self.engine.set_secret("adminToken", token)
            self.engine.up()
        with self._step("adopted by the proxy"):
            version = self.current_version()
            line = f'metrics_proxy_secret_info{{secret="token",version="{version}"}} 1.0'
            wait(lambda: line in (self.proxy_metrics() or ""), "the proxy to adopt the token")
        with self._step("old token revoked"):
            api.accept(self.api, [api.digest(token)])

    def current_version(self) -> str:
        """The version id of the token in Secrets Manager."""
        answer = self.account.client("secretsmanager").describe_secret(
            SecretId=self.engine.outputs()["tokenSecretArn"]
        )
        return next(str(v) for v, s in answer["VersionIdsToStages"].items() if "AWSCURRENT" in s)

    def down(self) -> None:
        """End every process and remove the folder."""
        for name in ("prometheus", "host", "api", "aws"):
            if running := self.process(name):
                with self._step(f"stop {name}"):
                    running.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True
