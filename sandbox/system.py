"""The whole system on one machine: what `python -m sandbox` brings up, asks and takes down."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
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
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import yaml

from config.settings import NAMESPACE
from sandbox import api, aws
from sandbox.engine import STACK, Engine
from sandbox.machines.kind import Machine, Processes
from sandbox.machines.process import ProcessMachine
from sandbox.machines.vm.fleet import Fleet
from sandbox.machines.vm.machine import VirtualMachine
from sandbox.processes import Process, listens, start, wait
from sandbox.tools import ROOT, prometheus
from sandbox.vpc.network import ZONES

LOOPBACK: Final = "127.0.0.1"
SYNC_INTERVAL: Final = 2
CA_FILE: Final = "metrics-proxy-ca.pem"
"""The proxy's CA, for curl; Prometheus has it in its scrape config."""

Progress = Callable[[str, float], object]
"""Told of each step that ended: what it was, and its seconds."""


MACHINES: Final[dict[str, Callable[[Path, Processes], Machine]]] = {
    "vm": VirtualMachine,
    "process": ProcessMachine,
}


class SandboxError(Exception):
    """What an operator has to know, in one line."""


class Sandbox:
    """One sandbox, whose whole state lies below `folder`."""

    def __init__(
        self,
        folder: Path,
        progress: Progress = lambda *_: None,
        host: str = "process",
        machines: int = 1,
    ) -> None:
        """`host` is the kind of a new sandbox's machines; an older one keeps kind and number."""
        self.folder = folder.resolve()
        self.logs = self.folder / "logs"
        self.api = self.folder / "api"
        self.prometheus_folder = self.folder / "prometheus"
        self._state_file = self.folder / "sandbox.json"
        self._progress = progress
        self.kind = str(self.state.get("host", host))
        self.machines = int(self.state.get("machines", machines))

    @cached_property
    def machine(self) -> Machine | Fleet:
        """What runs the proxy: one machine or a fleet."""
        if self.machines > 1:
            return Fleet(self.folder, self, self.machines)
        return MACHINES[self.kind](self.folder, self)

    @property
    def fleet(self) -> Fleet | None:
        """The machines, if there are several."""
        return self.machine if isinstance(self.machine, Fleet) else None

    @property
    def root(self) -> Path:
        """The machine's files."""
        return self.machine.root

    # -- state ---------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        return self._state_file.exists()

    @cached_property
    def state(self) -> dict[str, Any]:
        """The machine's kind, ports, the instance that runs, and the processes by name."""
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

    def _keep(self, name: str, process: Process) -> Process:
        self.state["processes"][name] = asdict(process)
        self._save()
        return process

    def spawn(self, name: str, command: Sequence[str]) -> Process:
        """Start a process of the sandbox; its output goes to `logs/NAME.log`."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
        return self._keep(name, start(command, self.logs / f"{name}.log", environment))

    def module(
        self, name: str, module: str, *arguments: str, prefix: Iterable[str] = ()
    ) -> Process:
        """Start one of the project's modules as a process of the sandbox."""
        return self.spawn(name, [*prefix, sys.executable, "-m", module, *arguments])

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
        for folder in (self.logs, self.api, self.prometheus_folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.state |= {"host": self.kind, "machines": self.machines}
        self._save()
        self.machine.prepare(self._step)
        self._aws()
        self.sample_api()
        if self.fleet:
            self.fleet.start()  # the first `up` waits until its machines are well
        with self._step("pulumi up"):
            self._configure(server, token)
            self.engine.up(output)
        if isinstance(self.machine, Fleet):
            self._follow(self.machine)
        else:
            self._run(self.machine)
        self._start_prometheus()
        with self._step("first scrapes"):
            wait(lambda: all(self.scrapes().values()), "Prometheus to scrape all targets")

    def _aws(self) -> None:
        if self.process("aws"):
            return
        if (self.folder / "pulumi").exists():
            raise SandboxError(
                "the embedded AWS has ended, and its memory with it; run: down, then up"
            )
        with self._step("embedded AWS"):
            network = self.machine.addresses
            child, _ = aws.start(
                self.folder, region=aws.REGION, vpc_cidr=network.vpc, subnet_cidr=network.subnet
            )
            self._keep("aws", Process.adopt(child))

    def _subnets(self) -> list[str]:
        """A fleet's: the account's one, and one in each other zone."""
        zones = ZONES[1 : self.machines]
        more = [self.account.another_subnet(zone.subnet, zone.letter) for zone in zones]
        return [self.account.subnet_id, *more]

    def sample_api(self) -> None:
        if self.process("api"):
            return
        with self._step("sample API"):
            address, ports = self.machine.addresses.api, self.machine.ports
            if not (self.api / "tokens.json").exists():
                api.accept(self.api, [])
            arguments = ["--address", address, "--metrics-port", str(ports.api)]
            arguments += ["--workers-port", str(ports.workers), "--folder", str(self.api)]
            self.module("api", "sandbox.api", *arguments, prefix=self.machine.prefix("api"))
            with self.machine.at("api"):
                for port in (ports.api, ports.workers):
                    wait(partial(listens, address, port), "the sample API")

    def _configure(self, server: str | None, token: str | None) -> None:
        """The stack file of a new sandbox; an older one's is the user's, but for the server."""
        engine, network, ports = self.engine, self.machine.addresses, self.machine.ports
        if "configured" in self.state:
            engine.configure({"server": server} if server else {})
            return
        place: dict[str, Any] = {"subnetId": self.account.subnet_id}
        if self.fleet:
            place = {"subnetIds": self._subnets()}
        upstreams = {"api": ("/metrics", ports.api), "workers": ("/metrics/workers", ports.workers)}
        engine.configure(
            {
                "aws:region": aws.REGION,
                **place,
                "prometheusCidrs": [network.prometheus_cidr],
                "apiCidrs": [network.api_cidr],
                "endpoints": [
                    {
                        "name": name,
                        "path": path,
                        "upstream": f"http://{network.api_name}:{port}{path}",
                    }
                    for name, (path, port) in upstreams.items()
                ],
                "server": server or "nginx",
                "port": ports.proxy,
                "instanceType": "t4g.micro" if platform.machine() == "aarch64" else "t3.micro",
                "syncInterval": SYNC_INTERVAL,
                "grafana": {"folderTitle": "SBA sandbox"},
            }
        )
        token = token or secrets.token_urlsafe(32)
        engine.set_secret("adminToken", token)
        api.accept(self.api, [api.digest(token)])
        self.state["configured"] = True
        self._save()

    def _run(self, machine: Machine) -> None:
        """Run the machine that the embedded EC2 has on record; a replaced one anew."""
        instance = str(self.engine.outputs()["instanceId"])
        new = self.state.get("instance") != instance
        running = self.process("host")
        if running and not new:
            machine.update(self.account, instance)
            return
        what = machine.what
        if running:
            what += ", in place of the old one (the sandbox's gap, not AWS')"
        with self._step(f"host: {what}"):
            if running:
                running.stop()
            self.state["instance"] = instance
            machine.run(self.account, instance, new=new)
            wait(self._machine_serves, "the proxy to answer (logs/host.log)", 300)

    def _machine_serves(self) -> bool:
        if self.process("host") is None:
            raise SandboxError(f"the host has ended; see {self.logs / 'host.log'}")
        return self.proxy_metrics() is not None

    def _follow(self, fleet: Fleet) -> None:
        """Wait until Auto Scaling has done what `up` has asked for."""
        with self._step(f"{self.machines} machines: {fleet.what}"):
            wait(
                partial(self._is_as_wanted, fleet),
                "all machines to be healthy (logs/machines.log)",
                900,
            )

    def _is_as_wanted(self, fleet: Fleet) -> bool:
        """Whether every machine is of the group's template and well; why not, if that is final."""
        for name in ("machines", "balancer"):
            if self.process(name) is None:
                raise SandboxError(f"{name} has ended; see {self.logs / f'{name}.log'}")
        group, refreshes = self.auto_scaling()
        last = next(iter(refreshes), {"Status": "Successful"})
        if last["Status"] in ("Pending", "InProgress", "RollbackInProgress"):
            return False
        there = group["Instances"]
        old = [it for it in there if it["LaunchTemplate"] != group["LaunchTemplate"]]
        if old and last["Status"] != "Successful":
            reason = last.get("StatusReason", "no reason is known")
            raise SandboxError(
                f"the old machines stay (instance refresh: {last['Status']}). {reason} "
                f"(its console is in {self.logs})"
            )
        well = [it for it in fleet.members() if it.health == "healthy"]
        return not old and {it.instance for it in well} == {it["InstanceId"] for it in there}

    def auto_scaling(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The fleet's group, as the embedded AWS has it, and its refreshes, newest first."""
        client, name = (
            self.account.client("autoscaling"),
            self.engine.outputs()["autoscalingGroupName"],
        )
        answer = client.describe_auto_scaling_groups(AutoScalingGroupNames=[name])
        refreshes = client.describe_instance_refreshes(AutoScalingGroupName=name)
        return dict(answer["AutoScalingGroups"][0]), list(refreshes["InstanceRefreshes"])

    def _start_prometheus(self) -> None:
        """Prometheus with the stack's own scrape config and alerts."""
        outputs = self.engine.outputs()
        (self.prometheus_folder / CA_FILE).write_text(outputs["caCertificate"])
        (self.prometheus_folder / "metrics-proxy.yml").write_text(outputs["scrapeConfig"])
        (self.prometheus_folder / "rules.yml").write_text(outputs["prometheusRules"])
        second = ("scrape_interval", "scrape_timeout", "evaluation_interval")
        main = {
            "global": dict.fromkeys(second, "1s"),
            "scrape_config_files": ["metrics-proxy.yml"],
            "rule_files": ["rules.yml"],
        }
        (self.prometheus_folder / "prometheus.yml").write_text(yaml.safe_dump(main))
        if running := self.process("prometheus"):
            running.signal(signal.SIGHUP)
            return
        with self._step("Prometheus"):
            prefix = self.fleet.resolving() if self.fleet else self.machine.prefix("prometheus")
            command = [*prefix, prometheus()]
            command += [f"--config.file={self.prometheus_folder / 'prometheus.yml'}"]
            command += [f"--storage.tsdb.path={self.prometheus_folder / 'data'}"]
            command += [f"--web.listen-address={LOOPBACK}:{self.machine.ports.prometheus}"]
            self.spawn("prometheus", command)
            wait(self._prometheus_ready, "Prometheus (logs/prometheus.log)")

    def _prometheus_ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.prometheus_url}/-/ready", timeout=5).close()
        except (OSError, http.client.HTTPException):
            return False
        return True

    # -- questions -----------------------------------------------------------------------------

    @property
    def prometheus_url(self) -> str:
        address, port = self.machine.reach("prometheus", LOOPBACK)
        return f"http://{address}:{port}"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query: a list of `{"metric": labels, "value": [time, text]}`."""
        url = f"{self.prometheus_url}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(url, timeout=10) as answer:
            return list(json.load(answer)["data"]["result"])

    def scrapes(self) -> dict[str, bool]:
        """Scrape target → whether its last scrape succeeded."""
        endpoints = self.engine.config[f"{NAMESPACE}:endpoints"]
        wanted = {endpoint["name"]: False for endpoint in endpoints}
        wanted |= {f"proxy {zone}".strip(): False for zone in self.zones()}
        for sample in self.query("up"):
            label = sample["metric"]
            name = label.get("endpoint", f"proxy {label.get('zone', '')}".strip())
            wanted[name] = sample["value"][1] == "1"
        return wanted

    def zones(self) -> list[str]:
        """The zones of a fleet; one without a name for one machine."""
        targets = self.engine.outputs()["proxyTargets"]
        return [target.get("zone", "") for target in targets]

    def get(
        self, path: str, headers: dict[str, str] | None = None, zone: str = ""
    ) -> tuple[int, str]:
        """GET a path of the proxy as Prometheus does: with the CA, without a token.

        `zone`: of a fleet, from that zone's machine; otherwise from any.
        """
        proxy = self.proxy()
        address, port, name = proxy["address"], proxy["port"], proxy["server_name"]
        context = ssl.create_default_context(cadata=self.engine.outputs()["caCertificate"])
        connection = http.client.HTTPConnection(name, port)
        where: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if zone and self.fleet:
            where, port = self.machine.at("prometheus"), self.machine.ports.proxy
            address = self.fleet.nodes()[zone]
        with closing(connection):
            with where:
                plain = socket.create_connection((address, port), timeout=10)
            connection.sock = context.wrap_socket(plain, server_hostname=name)
            connection.request("GET", path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def proxy_metrics(self, zone: str = "") -> str | None:
        """The proxy's own document, None while it does not answer; `zone` as in `get`."""
        try:
            status, text = self.get("/metrics/proxy", zone=zone)
        except (OSError, http.client.HTTPException):
            return None
        return text if status == 200 else None

    def proxy(self) -> dict[str, Any]:
        """Where this computer's own programs reach the proxy, and how it names itself."""
        address, port = self.machine.reach("proxy", self.engine.outputs().get("privateIp", ""))
        config = self.engine.config
        return {
            "server": config[f"{NAMESPACE}:server"],
            "url": f"https://{address}:{port}",
            "address": address,
            "port": port,
            "server_name": config.get(f"{NAMESPACE}:serverName", "prometheus-api.local"),
            "ca_file": str(self.prometheus_folder / CA_FILE),
        }

    def contract(self) -> dict[str, Any]:
        """Where everything is, as `--json` prints it."""
        outputs, account = self.engine.outputs(), self.account
        config = self.engine.config
        return {
            "proxy": self.proxy(),
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
            "host": {"kind": self.kind, "root": str(self.root)},
            "machines": self._machines(),
            "grafana": {"provisioning": str(self.engine.provisioning)},
        }

    def _machines(self) -> list[dict[str, str]]:
        """Each machine; of a fleet with its zone, and what the balancer found of it."""
        if self.fleet:
            keys = ("instance", "zone", "address", "health")
            return [{key: getattr(it, key) for key in keys} for it in self.fleet.members()]
        outputs = self.engine.outputs()
        return [{"instance": outputs["instanceId"], "address": outputs["privateIp"]}]

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
            for zone in self.zones():
                adopted = partial(self._shows, line, zone)
                wait(adopted, f"the proxy to adopt the token {zone}".rstrip())
        with self._step("old token revoked"):
            api.accept(self.api, [api.digest(token)])

    def _shows(self, line: str, zone: str) -> bool:
        return line in (self.proxy_metrics(zone) or "")

    def current_version(self) -> str:
        """The version id of the token in Secrets Manager."""
        answer = self.account.client("secretsmanager").describe_secret(
            SecretId=self.engine.outputs()["tokenSecretArn"]
        )
        return next(str(v) for v, s in answer["VersionIdsToStages"].items() if "AWSCURRENT" in s)

    def down(self) -> None:
        """End every process and remove the folder."""
        for name in reversed(self.state["processes"]):
            if running := self.process(name):
                with self._step(f"stop {name}"):
                    running.stop()
        self.machine.remove()
        shutil.rmtree(self.folder, ignore_errors=True)
