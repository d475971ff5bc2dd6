"""What can go wrong, how to make it so, and what an operator then sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

from sandbox import api
from sandbox.machines.vm import power
from sandbox.machines.vm.machine import VirtualMachine
from sandbox.processes import listens, wait
from sandbox.system import Sandbox
from sandbox.vpc import services
from sandbox.vpc.network import ADDRESSES, AWS_SERVERS, METADATA
from tests.certificates import DAY, self_signed

AWS = f"ip daddr {AWS_SERVERS} tcp dport 443"
API = f"ip daddr {ADDRESSES.api_cidr} tcp dport {{ 9464, 3002 }}"
DNS = "iifname vpc0 meta l4proto { tcp, udp } th dport 53"
PROXY, SYNC = "metrics-proxy.service", "metrics-proxy-sync.service"
STALE = "time() - min(metrics_proxy_secret_last_success_timestamp_seconds) > 6"
"""No sync for three intervals of the sandbox."""

Loses = Literal["none", "while it lasts", "a restart"]


@dataclass(frozen=True, kw_only=True)
class World:
    """What faults happen to."""

    vm: Sandbox
    machine: VirtualMachine


Cause = Callable[[World], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    name: str
    cause: Cause
    """Entered: the fault is there. Left: its cause is gone, and the rest is for the machine."""
    metric: str
    """PromQL that has a result while it lasts."""
    loses: Loses = "none"
    says: str = ""
    """A regular expression of what the console says of it while it lasts. None where the console
    could not tell it from another."""


# -- tools -------------------------------------------------------------------------------------


@contextmanager
def filtered(world: World, *rules: str) -> Iterator[None]:
    """Rules of the packet filter, for what passes the VPC and what it answers itself."""
    lines = "\n".join(rules)
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority filter + 10\n{lines}\n}}\n"
        for hook in ("forward", "input")
    )
    with table(world, chains):
        yield


@contextmanager
def table(world: World, chains: str) -> Iterator[None]:
    world.machine.network.nft(f"table inet faults {{\n{chains}}}\n")
    try:
        yield
    finally:
        world.machine.network.nft("delete table inet faults\n")


@contextmanager
def in_place_of_aws(world: World) -> Iterator[tuple[socket.socket, ssl.SSLContext]]:
    """Connections to AWS' names come to a socket of ours; the certificate is the real one's."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(world.machine.folder / "server.pem")
    with world.machine.at("vpc"):
        listener = socket.create_server((AWS_SERVERS, 8443))
    redirect = f"iifname vpc0 {AWS} dnat ip to {AWS_SERVERS}:8443"
    with table(world, f"chain r {{ type nat hook prerouting priority dstnat\n{redirect}\n}}\n"):
        yield listener, tls


def answers(status: int, code: str) -> Cause:
    """AWS answers every request with an error."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"__type": code, "message": "a fault"}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    @contextmanager
    def run(world: World) -> Iterator[None]:
        with in_place_of_aws(world) as (listener, tls):
            server = ThreadingHTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
            server.socket.close()
            server.socket = tls.wrap_socket(
                listener, server_side=True, do_handshake_on_connect=False
            )
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()
                server.server_close()

    return run


@contextmanager
def slow_aws(world: World, seconds: float) -> Iterator[None]:
    """AWS answers late."""
    url = urlsplit(world.vm.account.endpoint_url)
    loop, late = asyncio.new_event_loop(), []

    async def connect() -> services.Streams:
        late.append(url)
        await asyncio.sleep(seconds)
        return await asyncio.open_connection(url.hostname, url.port)

    with in_place_of_aws(world) as (listener, tls):
        task = loop.create_task(services.relay(listener, connect, tls))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            wait(lambda: len(late) >= 4, "two syncs to ask")
            yield
        finally:
            loop.call_soon_threadsafe(task.cancel)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@contextmanager
def secret(world: World, output: str, value: Callable[[str], str]) -> Iterator[None]:
    """Another value of a secret, made of the good one."""
    client = world.vm.account.client("secretsmanager")
    arn = world.vm.engine.outputs()[output]
    good = client.get_secret_value(SecretId=arn)["SecretString"]
    client.put_secret_value(SecretId=arn, SecretString=value(good))
    try:
        yield
    finally:
        client.put_secret_value(SecretId=arn, SecretString=good)


def token(value: str) -> Cause:
    return lambda world: secret(world, "tokenSecretArn", lambda _: value)


def bundle(**changes: Any) -> Cause:
    def changed(good: str) -> str:
        return json.dumps(json.loads(good) | changes)

    return lambda world: secret(world, "bundleSecretArn", changed)


def configuration(was: str, would: str) -> Cause:
    """The bundle's, with another line."""

    def changed(good: str) -> str:
        content = json.loads(good)
        content["configuration"], found = re.subn(was, would, content["configuration"])
        assert found == 1
        return json.dumps(content)

    return lambda world: secret(world, "bundleSecretArn", changed)


def drops(*rules: str) -> Cause:
    return lambda world: filtered(world, *rules)


def once(*command: str) -> Cause:
    """A command in the machine; what it breaks is not mended by us."""

    @contextmanager
    def run(world: World) -> Iterator[None]:
        done = world.machine.inside("sh", "-c", *command)
        assert done.returncode == 0, done.stderr
        yield

    return run


# -- causes ------------------------------------------------------------------------------------

DIE = """
import os, pathlib, runpy, signal, subprocess, sys
step, *sys.argv = sys.argv[1:]
owner, name, when = {
    "write": (pathlib.Path, "write_bytes", lambda path, *_: path.name == "token.conf"),
    "trial": (subprocess, "Popen", lambda argv, *_: any("trial.conf" in word for word in argv)),
    "switch": (pathlib.Path, "symlink_to", lambda path, *_: path.name == "current.new"),
    "reload": (subprocess, "run", lambda argv, *_: "systemctl" in argv),
    "record": (pathlib.Path, "write_text", lambda path, *_: path.name == "state.json.new"),
}[step]
original = getattr(owner, name)
def dying(*arguments, **named):
    if when(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **named)
setattr(owner, name, dying)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the sync, and kills it on the way into a step of an adoption."""


def killed_at(step: str) -> Cause:
    """The sync dies on its way into a step, whenever it tries to adopt a new token."""

    @contextmanager
    def kill(world: World) -> Iterator[None]:
        root, vm = world.machine.root, world.vm
        unit = world.machine.inside("systemctl", "cat", SYNC).stdout
        start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
        start = start.replace(" -I ", f" -I /run/die.py {step} ")
        override = root / "run/systemd/system" / f"{SYNC}.d" / "die.conf"
        (root / "run/die.py").write_text(DIE)
        override.parent.mkdir(parents=True)
        override.write_text(f"[Service]\nExecStart=\n{start}\n")
        new = f"rotated-while-the-sync-dies-at-{step}"
        client = vm.account.client("secretsmanager")
        try:
            world.machine.inside("systemctl", "daemon-reload")
            api.accept(vm.api, [*api.accepted(vm.api), api.digest(new)])
            arn = vm.engine.outputs()["tokenSecretArn"]
            client.put_secret_value(SecretId=arn, SecretString=new)
            wait(lambda: _result(world) == "signal", f"the sync to be killed at {step}")
            yield
        finally:
            override.unlink()
            override.parent.rmdir()
            world.machine.inside("systemctl", "daemon-reload")

    return kill


def _result(world: World) -> str:
    return world.machine.inside("systemctl", "show", "-P", "Result", SYNC).stdout.strip()


@contextmanager
def denied(world: World) -> Iterator[None]:
    """The role's policy is gone."""
    iam = world.vm.account.client("iam")
    [profile] = iam.list_instance_profiles()["InstanceProfiles"]
    [name] = [role["RoleName"] for role in profile["Roles"]]
    [policy] = iam.list_role_policies(RoleName=name)["PolicyNames"]
    document = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
    iam.delete_role_policy(RoleName=name, PolicyName=policy)
    try:
        yield
    finally:
        iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=json.dumps(document))


@contextmanager
def revoked(world: World) -> Iterator[None]:
    good = api.accepted(world.vm.api)
    api.accept(world.vm.api, [])
    try:
        yield
    finally:
        api.accept(world.vm.api, good)


@contextmanager
def api_hangs(world: World) -> Iterator[None]:
    """It takes connections, and never answers."""
    process = world.vm.process("api")
    assert process
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


@contextmanager
def api_moved(world: World) -> Iterator[None]:
    """Nobody is at the API's address any more; then another machine answers for its name."""
    network, hosts, moved = world.machine.network, world.machine.folder / "hosts", "10.9.47.11"
    dns, ports = world.vm.process("dns"), world.machine.ports
    assert dns
    network.ip("api", "address", "add", f"{moved}/24", "dev", "eth0")
    command = [*network.prefix("api"), sys.executable, "-m", "sandbox.api", "--address", moved]
    command += ["--metrics-port", str(ports.api), "--workers-port", str(ports.workers)]
    second = subprocess.Popen([*command, "--folder", str(world.vm.api)])
    here = hosts.read_text()
    try:
        with world.machine.at("api"):
            wait(lambda: listens(moved, ports.workers), "the second API")
        with filtered(world, f"ip daddr {ADDRESSES.api} drop"):
            yield
            hosts.write_text(here.replace(ADDRESSES.api, moved))
            dns.signal(signal.SIGHUP)
            wait(lambda: world.vm.query("min(up) == 1"), "scrapes from the new address", 30)
    finally:
        hosts.write_text(here)
        dns.signal(signal.SIGHUP)
        second.kill()
        second.wait()
        network.ip("api", "address", "delete", f"{moved}/24", "dev", "eth0")


@contextmanager
def full(world: World, folder: str, *prepare: str) -> Iterator[None]:
    """Not a byte is left in a folder of the machine."""
    fill = [*prepare, f"cat /dev/zero > {folder}/fill || true"]
    done = world.machine.inside("sh", "-c", "; ".join(fill))
    assert "No space left" in done.stderr
    try:
        yield
    finally:
        world.machine.inside("rm", f"{folder}/fill")


@contextmanager
def unplugged(world: World) -> Iterator[None]:
    world.machine.network.ip("vpc", "link", "set", "vpc0", "down")
    try:
        yield
    finally:
        world.machine.network.ip("vpc", "link", "set", "vpc0", "up")


@contextmanager
def rebooted(world: World, cause: Cause = contextlib.nullcontext) -> Iterator[None]:
    """A reboot under load: two clients besides Prometheus. With a cause, it is there at boot."""
    before, stop = power.leader(world.machine.network.name), threading.Event()

    def ask() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                world.vm.get("/metrics")
            stop.wait(0.05)

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        with cause(world):
            world.machine.inside("systemctl", "reboot")
            wait(lambda: _leader(world) not in (None, before), "the machine to boot again")
            yield
    finally:
        stop.set()
        for client in clients:
            client.join()


def _leader(world: World) -> int | None:
    try:
        return power.leader(world.machine.network.name)
    except ProcessLookupError:
        return None


@contextmanager
def power_cut(world: World) -> Iterator[None]:
    """Every process of the machine is gone at once; `up` switches it on again."""
    power.kill(world.machine.network.name)
    wait(lambda: world.vm.process("host") is None, "the machine to be off")
    with ThreadPoolExecutor(1) as pool:
        up = pool.submit(world.vm.up)
        yield
        up.result()


# -- the table ---------------------------------------------------------------------------------

EXPIRED, OTHER = self_signed(end=-DAY / 2), self_signed()


def failed(reason: str) -> str:
    return f'metrics_proxy_sync_failed{{reason="{reason}"}} == 1'


PROXY_ONLY = 'up{job="sba-api"} == 0 and on() up{job="sba-proxy"} == 1'
KILLED = "metrics-proxy-sync.service: Main process exited, code=killed"
UNREACHED = "metrics_proxy_upstream_http_status == 0"

FAULTS = [
    Fault(
        name="server's master killed (-9)",
        cause=once(f"kill -9 $(systemctl show -P MainPID {PROXY})"),
        # in two of five runs no scrape fell into the moment without a server
        metric="up == 1",
        loses="a restart",
        says="start worker processes",
    ),
    Fault(
        name="a worker killed (-9)",
        cause=once(f"kill -9 $(pgrep -P $(systemctl show -P MainPID {PROXY}) | head -1)"),
        metric="up == 1",
        loses="a restart",
        says="exited on signal 9",
    ),
    *(
        Fault(
            name=f"sync killed before its {step}", cause=killed_at(step), metric=STALE, says=KILLED
        )
        for step in ("write", "trial", "switch", "reload", "record")
    ),
    Fault(
        name="Secrets Manager unreachable",
        cause=drops(f"{AWS} drop"),
        metric=failed("fetch_token"),
        says="token: not fetched: ConnectTimeoutError",
    ),
    Fault(
        name="Secrets Manager slow (3 s)",
        cause=partial(slow_aws, seconds=3),
        metric="metrics_proxy_secret_sync_ok == 1",
    ),
    Fault(
        name="Secrets Manager too slow (12 s)",
        cause=partial(slow_aws, seconds=12),
        metric=failed("fetch_token"),
        says="token: not fetched: ReadTimeoutError",
    ),
    Fault(
        name="Secrets Manager answers 500",
        cause=answers(500, "InternalServiceError"),
        metric=failed("fetch_token"),
        says="token: not fetched: InternalServiceError",
    ),
    Fault(
        name="Secrets Manager throttles",
        cause=answers(400, "ThrottlingException"),
        metric=failed("fetch_token"),
        says="token: not fetched: ThrottlingException",
    ),
    Fault(
        name="access to the secrets denied",
        cause=denied,
        metric=failed("fetch_token"),
        says="token: not fetched: AccessDeniedException",
    ),
    Fault(
        name="metadata service gone",
        cause=drops(f"ip daddr {METADATA} drop"),
        metric=failed("fetch_token"),
        says="token: not fetched: NoCredentialsError",
    ),
    Fault(
        name="API down",
        cause=drops(f"{API} reject with tcp reset"),
        metric=UNREACHED,
        loses="while it lasts",
        says="no answer: Connection refused",
    ),
    Fault(
        name="API unreachable",
        cause=drops(f"{API} drop"),
        metric=UNREACHED,
        loses="while it lasts",
        says="no answer: TimeoutError",
    ),
    Fault(
        name="API hangs",
        cause=api_hangs,
        metric=UNREACHED,
        loses="while it lasts",
        says="no answer: TimeoutError",
    ),
    Fault(
        name="API resets connections",
        cause=drops(f"{API} tcp flags & psh == psh reject with tcp reset"),
        metric=UNREACHED,
        loses="while it lasts",
        says="no answer: Connection reset by peer",
    ),
    Fault(
        name="API's name moved to another address",
        cause=api_moved,
        metric=PROXY_ONLY,
        loses="while it lasts",
    ),
    Fault(
        name="DNS silent",
        cause=drops(f"{DNS} drop"),
        metric=PROXY_ONLY,
        loses="while it lasts",
        says="unexpected DNS response|could not be resolved",
    ),
    Fault(
        name="DNS refuses",
        cause=drops(f"{DNS} reject"),
        metric=UNREACHED,
        loses="while it lasts",
        says="http://api-internal.*: no address: ",
    ),
    Fault(
        name="token revoked",
        cause=revoked,
        metric="metrics_proxy_upstream_http_status == 401",
        loses="while it lasts",
        says="API answers 401",
    ),
    Fault(
        name="token malformed",
        cause=token('a"; return 200 "'),
        metric=failed("token_invalid"),
        says="token: not adopted: no b64token",
    ),
    Fault(
        name="token oversized",
        cause=token("x" * 5000),
        metric=failed("token_invalid"),
        says="token: not adopted: no b64token",
    ),
    Fault(
        name="token that the API refuses",
        cause=token("nobody-knows-this-one"),
        metric=failed("token_refused"),
        says="token: not adopted: the API takes the live one, and not this, on api, workers",
    ),
    Fault(
        name="certificate expired",
        cause=bundle(certificate=EXPIRED[0], key=EXPIRED[1]),
        metric=failed("certificate_invalid"),
        says="certificate: not adopted: no PEM certificate in date with its key",
    ),
    Fault(
        name="certificate without its key",
        cause=bundle(certificate=OTHER[0]),
        metric=failed("certificate_invalid"),
        says="certificate: not adopted: no PEM certificate in date with its key",
    ),
    Fault(
        name="configuration broken",
        cause=bundle(configuration="no directive;\n"),
        metric=failed("test"),
        says="configuration: not adopted: test ends with",
    ),
    Fault(
        name="configuration that passes the test and serves nobody",
        cause=configuration(r"worker_connections \d+;", "worker_connections 2;"),
        metric=failed("trial"),
        says="configuration: not adopted: trial: ",
    ),
    Fault(
        name="configuration empty",
        cause=bundle(configuration=""),
        metric=failed("configuration_invalid"),
        says="configuration: not adopted: the configuration is no text, or empty",
    ),
    Fault(
        name="/run full",
        cause=lambda world: full(world, "/run", "mount -o remount,size=24M /run"),
        metric=STALE,
        says="No space left on device",
    ),
    Fault(
        name="disk full",
        cause=lambda world: full(world, "/var"),
        metric="metrics_proxy_secret_sync_ok == 1",
    ),
    Fault(
        name="network cut",
        cause=unplugged,
        metric="up == 0",
        loses="while it lasts",
        says="(?s)token: not fetched: NoCredentialsError.*: no address: Temporary failure",
    ),
    Fault(
        name="reboot under load",
        cause=rebooted,
        metric="up == 0",
        loses="a restart",
        says="Reached target.*Reboot",
    ),
    *(
        Fault(
            name=f"reboot, {name}",
            cause=partial(rebooted, cause=cause),
            metric="up == 0",
            loses="while it lasts",
            says=f"bundle: not fetched: {error}",
        )
        for name, cause, error in (
            (
                "Secrets Manager refusing connections",
                drops(f"{AWS} reject with tcp reset"),
                "EndpointConnectionError",
            ),
            (
                "Secrets Manager answering 500",
                answers(500, "InternalServiceError"),
                "InternalServiceError",
            ),
            ("access to the secrets denied", denied, "AccessDeniedException"),
        )
    ),
    Fault(
        name="power cut",
        cause=power_cut,
        metric="up == 0",
        loses="while it lasts",
        says=r"\A(?s:(?!Shutdown).)*Welcome to",
    ),
]
