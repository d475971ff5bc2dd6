"""The running system: what Prometheus sees, what a client may, and where the token is not."""

from __future__ import annotations

import base64
import functools
import gzip
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import api
from sandbox.__main__ import main
from sandbox.engine import STACK
from sandbox.machines.process import ADDRESSES
from sandbox.processes import wait
from sandbox.system import SYNC_INTERVAL, Sandbox
from sandbox.tools import ROOT
from tests.certificates import self_signed
from tests.leaks import CANARY, holds
from tests.monitoring.test_dashboard import WORKERS

TARGETS = 'up{job=~"sba-api|sba-proxy"}'


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What pulumi printed while the sandbox came up."""
    return []


@pytest.fixture(scope="module", params=["nginx", "apache"])
def sandbox(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, printed: list[str]
) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("sandbox"))
    try:
        running.up(request.param, token=CANARY, output=printed.append)
        yield running
    finally:
        running.down()


def scrapes(sandbox: Sandbox, since: float) -> list[str]:
    """The `up` of every scrape that began after a moment; the one before it is not its business."""
    found = sandbox.query(f"{TARGETS}[{int(time.time() - since) + 2}s]")
    return [up for series in found for when, up in series["values"] if when >= since]


def failed_scrapes(sandbox: Sandbox, since: float) -> int:
    """Scrapes that failed since a moment. One a second and target."""
    return wait(lambda: scrapes(sandbox, since), "a scrape").count("0")


def metric(sandbox: Sandbox, line: str) -> bool:
    return f"metrics_proxy_{line}\n" in (sandbox.proxy_metrics() or "")


@functools.cache
def where(sandbox: Sandbox) -> dict[str, Any]:
    """Address, port, name and CA of the proxy: the same as long as the sandbox is up."""
    return dict(sandbox.contract()["proxy"])


def raw(
    sandbox: Sandbox,
    target: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: str | None = None,
    source: str = "127.0.0.1",
) -> tuple[int, bytes]:
    """A request whose target goes out as it is, from a source address."""
    proxy = where(sandbox)
    context = ssl.create_default_context(cafile=proxy["ca_file"])
    connection = http.client.HTTPSConnection(
        proxy["address"], proxy["port"], context=context, timeout=10, source_address=(source, 0)
    )
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(None if body is None else body.encode())
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def requests(sandbox: Sandbox) -> list[dict[str, Any]]:
    log = sandbox.api / "requests.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_prometheus_scrapes_two_documents_and_the_proxy(sandbox: Sandbox) -> None:
    up = sandbox.query('up{job="sba-api"}')
    assert {s["metric"]["endpoint"]: s["value"][1] for s in up} == {"api": "1", "workers": "1"}
    assert len(up) == 2
    assert [s["value"][1] for s in sandbox.query('up{job="sba-proxy"}')] == ["1"]
    parts = "throughput error_rate error4xx_rate error5xx_rate timeout_rate queue_depth active_jobs"
    for part in parts.split():
        queues = {s["metric"]["queue_name"] for s in sandbox.query(f"sba_worker_{part}")}
        assert queues == set(api.QUEUES)


def verify(sandbox: Sandbox, *arguments: str, **environment: str) -> tuple[int, list[list[str]]]:
    """`make verify`: its exit status, and its lines as state, thing and text."""
    done = subprocess.run(
        [sys.executable, "-m", "monitoring.verify", "--stack", STACK, *arguments],
        cwd=sandbox.engine.project,
        env={**os.environ, **sandbox.engine.environment, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [re.split("  +", line, maxsplit=2) for line in done.stdout.splitlines()]


def test_all_that_is_declared_is_in_force(sandbox: Sandbox) -> None:
    things = ["machine", "configuration", "certificate", "token", "bundle", "sync", "API"]
    # what Prometheus knows may be a scrape older
    for how in ([], ["--wait", "120"]):
        asked = {"PROMETHEUS_URL": sandbox.prometheus_url} if how else {}
        status, lines = verify(sandbox, *how, **asked)
        assert [line[:2] for line in lines] == [["in force", it] for it in [*things, "scrapes"]]
        assert status == 0


def test_the_api_wants_the_token_and_the_proxy_brings_it(sandbox: Sandbox) -> None:
    config = yaml.safe_load(sandbox.engine.config_file.read_text())["config"]
    for endpoint in config["metrics-proxy:endpoints"]:
        url = urllib.parse.urlsplit(endpoint["upstream"])
        connection = http.client.HTTPConnection(url.netloc, timeout=5)
        connection.request("GET", url.path)
        assert connection.getresponse().status == 401
        connection.close()
        assert sandbox.get(endpoint["path"])[0] == 200


def test_the_clients_own_headers_never_reach_the_api(sandbox: Sandbox) -> None:
    mine = {
        "Authorization": "Bearer client-own",
        "Cookie": "a=b",
        "X-Remote-User": "root",
        "X-Forwarded-For": "9.9.9.9",
        "Connection": "Authorization",
    }
    assert raw(sandbox, "/metrics", headers={**mine, "User-Agent": "header-test"})[0] == 200
    [seen] = [r for r in requests(sandbox) if ["User-Agent", "header-test"] in r["headers"]]
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert seen["authorized"]
    assert api.digest("client-own")[:12] not in json.dumps(seen)
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert set(headers) == {
        "host",
        "connection",
        "user-agent",
        "authorization",
        "x-forwarded-for",
        "x-forwarded-proto",
    }


def test_only_the_prometheus_cidrs_are_served(sandbox: Sandbox) -> None:
    assert raw(sandbox, "/metrics")[0] == 200
    for target in ("/metrics", "/metrics/workers", "/metrics/proxy"):
        assert raw(sandbox, target, source="127.0.0.2")[0] == 403


def test_a_head_is_a_get_without_its_body(sandbox: Sandbox) -> None:
    assert raw(sandbox, "/metrics", "HEAD") == (200, b"")


def files_with(folder: Path, token: str) -> set[str]:
    found = set()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and holds(file.read_bytes(), token):
            found.add(str(file.relative_to(folder)))
    return found


def holders(sandbox: Sandbox) -> set[str]:
    """Files of the sandbox that hold the canary, but for the includes of the last generations."""
    found = files_with(sandbox.folder, CANARY[:-2])
    includes = {file for file in found if file.endswith("/token.conf")}
    assert includes
    return found - includes


def test_the_token_is_in_the_include_and_nowhere_else(sandbox: Sandbox, printed: list[str]) -> None:
    # the search sees what it looks for
    form = CANARY.encode()
    for seen in (
        form,
        base64.b64encode(form),
        base64.b64encode(b"x" + form + b"y"),
        urllib.parse.quote(CANARY, safe="").encode(),
        gzip.compress(form),
    ):
        assert holds(seen, CANARY)

    assert holders(sandbox) == set()

    secrets = sandbox.account.client("secretsmanager")
    arn = sandbox.engine.outputs()["tokenSecretArn"]
    assert secrets.get_secret_value(SecretId=arn)["SecretString"] == CANARY

    sandbox.engine.preview(printed.append, diff=True)
    assert printed
    assert not holds("\n".join(printed).encode(), CANARY)
    data = sandbox.account.client("ec2").describe_instance_attribute(
        InstanceId=sandbox.engine.outputs()["instanceId"], Attribute="userData"
    )["UserData"]["Value"]
    assert not holds(base64.b64decode(data), CANARY)
    assert not holds((sandbox.proxy_metrics() or "").encode(), CANARY)


def test_the_token_is_in_no_argument_and_no_environment(sandbox: Sandbox) -> None:
    read = 0
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                assert not holds((process / name).read_bytes(), CANARY), process
                read += 1
            except OSError:
                continue  # ended meanwhile, or another user's
    assert read > 2 * len(sandbox.state["processes"])


def test_rotations_lose_no_scrape(sandbox: Sandbox) -> None:
    began = time.time()
    for number in range(2):
        sandbox.rotate_token(f"{CANARY[:-2]}-{number}")
    assert failed_scrapes(sandbox, began) == 0
    assert len(api.accepted(sandbox.api)) == 1


def test_a_refused_token_is_adopted_once_the_api_takes_it(sandbox: Sandbox) -> None:
    began, token = time.time(), f"{CANARY[:-2]}-unknown-yet"
    sandbox.engine.set_secret("adminToken", token)
    sandbox.engine.up()
    wait(lambda: metric(sandbox, 'sync_failed{reason="token_refused"} 1.0'), "the refusal")
    assert sandbox.get("/metrics")[0] == 200
    status, lines = verify(sandbox)
    wrong = {thing: text for state, thing, text in lines if state == "not yet"}
    assert status == 1
    assert wrong.keys() == {"token", "sync"}
    assert wrong["token"].endswith(
        f", not {sandbox.current_version()}: the sync says token_refused"
    )
    api.accept(sandbox.api, [*api.accepted(sandbox.api), api.digest(token)])
    version = sandbox.current_version()
    wait(
        lambda: metric(sandbox, f'secret_info{{secret="token",version="{version}"}} 1.0'),
        "the token to be adopted",
        SYNC_INTERVAL + 5,
    )
    api.accept(sandbox.api, [api.digest(token)])
    assert failed_scrapes(sandbox, began) == 0


def test_a_token_revoked_at_once_costs_a_sync(sandbox: Sandbox) -> None:
    token = f"{CANARY[:-2]}-old-one-is-dead"
    sandbox.engine.set_secret("adminToken", token)
    sandbox.engine.up()
    began = time.time()
    api.accept(sandbox.api, [api.digest(token)])
    wait(
        lambda: sandbox.get("/metrics")[0] == 200 and sandbox.get("/metrics/workers")[0] == 200,
        "the proxy to adopt the new token",
        SYNC_INTERVAL + 5,
    )
    assert failed_scrapes(sandbox, began) <= 2 * (SYNC_INTERVAL + 5)


@pytest.mark.parametrize(
    "end", ['"; return 200 "', "\r\nX: y", " b", "x" * 3901, "$a", "%{x}", "\0"]
)
def test_a_malformed_token_leaves_the_last_good_one(sandbox: Sandbox, end: str) -> None:
    token = CANARY[:-2] + end
    secrets = sandbox.account.client("secretsmanager")
    arn = sandbox.engine.outputs()["tokenSecretArn"]
    good = sandbox.current_version()
    began = time.time()
    bad = secrets.put_secret_value(SecretId=arn, SecretString=token)["VersionId"]
    try:
        wait(lambda: metric(sandbox, 'sync_failed{reason="token_invalid"} 1.0'), "the refusal")
    finally:
        secrets.update_secret_version_stage(
            SecretId=arn,
            VersionStage="AWSCURRENT",
            MoveToVersionId=good,
            RemoveFromVersionId=bad,
        )
    wait(lambda: metric(sandbox, "secret_sync_ok 1.0"), "the sync to be well again")
    assert failed_scrapes(sandbox, began) == 0


def test_a_changed_endpoint_and_cidr_lose_no_scrape(sandbox: Sandbox) -> None:
    began = time.time()
    machine = sandbox.engine.outputs()["instanceId"]
    config = yaml.safe_load(sandbox.engine.config_file.read_text())["config"]
    endpoints = config["metrics-proxy:endpoints"]
    again = {**endpoints[1], "name": "again", "path": "/metrics/again"}
    sandbox.engine.configure(
        {
            "endpoints": [*endpoints, again],
            "prometheusCidrs": [ADDRESSES.prometheus_cidr, "127.0.0.3/32"],
        }
    )
    timer = sandbox.process("host")
    assert timer
    timer.signal(signal.SIGSTOP)
    try:
        sandbox.engine.up()
        status, lines = verify(sandbox)
    finally:
        timer.signal(signal.SIGCONT)
    wrong = {thing: text for state, thing, text in lines if state == "not yet"}
    assert status == 1
    assert wrong.keys() == {"configuration", "bundle", "API", "scrapes"}
    assert all(
        wrong[it].endswith(": the next sync brings it") for it in ("configuration", "bundle")
    )
    assert "again is not known" in wrong["API"]
    assert wrong["scrapes"].endswith("a scrape of again fails: it answers 404")
    status, lines = verify(sandbox, "--wait", "60")
    assert (status, {line[0] for line in lines}) == (0, {"in force"})
    assert sandbox.get("/metrics/again")[0] == 200
    assert raw(sandbox, "/metrics/again", source="127.0.0.3")[0] == 200
    assert sandbox.engine.outputs()["instanceId"] == machine
    sandbox.up()
    assert {s["metric"]["endpoint"] for s in sandbox.query('up{job="sba-api"}')} == {
        "api",
        "workers",
        "again",
    }
    sandbox.engine.configure(
        {"endpoints": endpoints, "prometheusCidrs": [ADDRESSES.prometheus_cidr]}
    )
    assert failed_scrapes(sandbox, began) == 0
    sandbox.up()
    # the sync may take the endpoint away before Prometheus has read its new configuration
    wait(lambda: not sandbox.query('up{endpoint="again"}'), "Prometheus to forget the endpoint")


def test_a_broken_configuration_does_not_hold_back_a_token(sandbox: Sandbox) -> None:
    secrets, outputs = sandbox.account.client("secretsmanager"), sandbox.engine.outputs()
    good = secrets.get_secret_value(SecretId=outputs["bundleSecretArn"])["SecretString"]
    token, began = f"{CANARY[:-2]}-beside-a-broken-configuration", time.time()
    broken = json.loads(good)
    broken["configuration"] = "Nonsense on;\n" + broken["configuration"]
    secrets.put_secret_value(SecretId=outputs["bundleSecretArn"], SecretString=json.dumps(broken))
    api.accept(sandbox.api, [*api.accepted(sandbox.api), api.digest(token)])
    secrets.put_secret_value(SecretId=outputs["tokenSecretArn"], SecretString=token)
    version = sandbox.current_version()
    wait(
        lambda: (
            metric(sandbox, f'secret_info{{secret="token",version="{version}"}} 1.0')
            and metric(sandbox, 'sync_failed{reason="test"} 1.0')
        ),
        "the token to be adopted and the configuration refused",
    )
    api.accept(sandbox.api, [api.digest(token)])
    assert sandbox.get("/metrics")[0] == 200
    secrets.put_secret_value(SecretId=outputs["bundleSecretArn"], SecretString=good)
    wait(lambda: metric(sandbox, "secret_sync_ok 1.0"), "the sync to be well again")
    assert failed_scrapes(sandbox, began) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_comes_back(sandbox: Sandbox, number: signal.Signals) -> None:
    server = where(sandbox)["server"]
    file = sandbox.root / "run/metrics-proxy-server" / f"{server}.pid"
    old = file.read_text()
    os.kill(int(old), number)
    wait(
        lambda: file.exists() and file.read_text() not in ("", old) and sandbox.proxy_metrics(),
        "the server to come back",
    )
    assert sandbox.get("/metrics")[0] == 200


def put(sandbox: Sandbox, name: str, value: str) -> None:
    """A new version of a secret, by the name of the output that holds its ARN."""
    arn = sandbox.engine.outputs()[name]
    sandbox.account.client("secretsmanager").put_secret_value(SecretId=arn, SecretString=value)


def bundle(sandbox: Sandbox) -> dict[str, Any]:
    secrets, arn = sandbox.account.client("secretsmanager"), sandbox.engine.outputs()
    text = secrets.get_secret_value(SecretId=arn["bundleSecretArn"])["SecretString"]
    return dict(json.loads(text))


def adopted(sandbox: Sandbox, version: str) -> bool:
    """Whether the sync says so; read from its file, as a test's certificate is of no known CA."""
    text = (sandbox.root / "run/metrics-proxy/proxy.prom").read_text()
    return f'secret_info{{secret="token",version="{version}"}} 1.0\n' in text


def test_a_reload_that_fails_is_put_back(sandbox: Sandbox) -> None:
    unit = sandbox.root / "etc/systemd/system/metrics-proxy.service"
    good, token, began = unit.read_text(), f"{CANARY[:-2]}-not-loaded", time.time()
    include = sandbox.root / "run/metrics-proxy/current/token.conf"
    before = include.read_text()
    api.accept(sandbox.api, [*api.accepted(sandbox.api), api.digest(token)])
    unit.write_text(re.sub("(?m)^ExecReload=.*$", "ExecReload=/bin/false", good))
    try:
        put(sandbox, "tokenSecretArn", token)
        wait(lambda: metric(sandbox, 'sync_failed{reason="reload"} 1.0'), "the reload to fail")
        assert include.read_text() == before
    finally:
        unit.write_text(good)
    assert failed_scrapes(sandbox, began) == 0
    # not tried again for an hour, unless the API no longer takes the live one
    api.accept(sandbox.api, [api.digest(token)])
    wait(lambda: adopted(sandbox, sandbox.current_version()), "the token to be adopted")
    wait(lambda: metric(sandbox, "secret_sync_ok 1.0"), "the sync to be well again")


def test_a_configuration_that_only_fails_when_it_is_loaded_is_not(sandbox: Sandbox) -> None:
    """A port that is taken passes both servers' tests, and not the trial."""
    good, server, began = bundle(sandbox), where(sandbox)["server"], time.time()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = {"nginx": f"listen 127.0.0.1:{port};", "apache": f"Listen 127.0.0.1:{port}"}[server]
        text = good["configuration"]
        anchor = next(x for x in text.splitlines() if x.strip().lower().startswith("listen"))
        broken = text.replace(anchor, f"{anchor}\n{line}")
        put(sandbox, "bundleSecretArn", json.dumps({**good, "configuration": broken}))
        try:
            wait(lambda: metric(sandbox, 'sync_failed{reason="trial"} 1.0'), "the refusal")
        finally:
            put(sandbox, "bundleSecretArn", json.dumps(good))
        wait(lambda: metric(sandbox, "secret_sync_ok 1.0"), "the sync to be well again")
    assert failed_scrapes(sandbox, began) == 0


class Client(threading.Thread):
    """Asks for one document after the other, four times a second, until it is stopped."""

    def __init__(self, sandbox: Sandbox, keepalive: bool, stop: threading.Event) -> None:
        super().__init__()
        self.statuses: Counter[str] = Counter()
        self._proxy, self._keepalive, self._stop_event = where(sandbox), keepalive, stop
        # it looks at the certificates only in number, and none of the new ones is of the stack's CA
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE

    def run(self) -> None:
        connection = self._connect()
        while not self._stop_event.wait(0.25):
            fresh, status = connection.sock is None, ""
            try:
                status = self._ask(connection)
            except OSError as error:
                connection.close()
                # A server may close an idle connection at any time: Go's client, Prometheus', asks
                # again on a new one, and so does this.
                status = repr(error) if fresh else self._ask(connection)
            self.statuses[status] += 1
            if not self._keepalive:
                connection.close()
        connection.close()

    def _connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            self._proxy["address"], self._proxy["port"], context=self._context, timeout=10
        )

    def _ask(self, connection: http.client.HTTPSConnection) -> str:
        connection.request("GET", "/metrics/workers")
        answer = connection.getresponse()
        answer.read()
        return str(answer.status)


def shows(sandbox: Sandbox, certificate: str) -> bool:
    """Whether a new connection is shown this certificate."""
    proxy = where(sandbox)
    return ssl.get_server_certificate((proxy["address"], proxy["port"])) == certificate


def test_rotations_of_token_and_certificate_under_load_lose_no_request(sandbox: Sandbox) -> None:
    good, stop = bundle(sandbox), threading.Event()
    clients = [Client(sandbox, keepalive, stop) for keepalive in 8 * [True] + 8 * [False]]
    for client in clients:
        client.start()
    try:
        for number in range(20):
            token, pair = f"{CANARY[:-2]}-load-{number}", self_signed()
            api.accept(sandbox.api, [*api.accepted(sandbox.api), api.digest(token)])
            renewed = {"certificate": pair[0], "key": pair[1]}
            put(sandbox, "bundleSecretArn", json.dumps(good | renewed))
            put(sandbox, "tokenSecretArn", token)
            wait(partial(adopted, sandbox, sandbox.current_version()), "the token", 20)
            wait(partial(shows, sandbox, pair[0]), "the certificate", 20)
            api.accept(sandbox.api, [api.digest(token)])
    finally:
        stop.set()
        for client in clients:
            client.join(30)
        put(sandbox, "bundleSecretArn", json.dumps(good))
    counted = sum((client.statuses for client in clients), Counter())
    print(f"{where(sandbox)['server']}: {dict(counted)}")
    assert set(counted) == {"200"}
    assert counted["200"] > 16 * 4 * 20
    wait(lambda: metric(sandbox, "secret_sync_ok 1.0"), "the sync to be well again")


def test_after_all_that_the_token_is_still_nowhere_else(sandbox: Sandbox) -> None:
    assert holders(sandbox) == set()


# -- the deployed dashboard on its Prometheus, and its picture


def deployed(sandbox: Sandbox) -> dict[str, Any]:
    [file] = sandbox.engine.provisioning.glob("dashboards/*/*.json")
    return dict(json.loads(file.read_text()))


def exported(sandbox: Sandbox) -> set[str]:
    """The names in the proxy's own document."""
    return set(re.findall(r"^metrics_proxy_(\w+)", sandbox.proxy_metrics() or "", re.M))


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Panel, query and legend."""
    return [
        (panel["title"], target["expr"].replace("$sba_queue", ".+"), target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


def test_all_that_is_exported_is_shown(sandbox: Sandbox) -> None:
    text = " ".join(query for _, query, _ in queries(deployed(sandbox)))
    assert set(re.findall(r"sba_worker_(\w+)", text)) == WORKERS
    assert set(re.findall(r"metrics_proxy_(\w+)", text)) == exported(sandbox)


def test_every_query_returns_what_its_legend_promises(sandbox: Sandbox) -> None:
    endpoints = [endpoint["name"] for endpoint in sandbox.contract()["endpoints"]]
    outputs = sandbox.engine.outputs()
    promised = {
        "queue_name": set(api.QUEUES),
        "instance": {f"{outputs['privateIp']}:{sandbox.proxy()['port']}"},
        "endpoint": set(endpoints),
        "secret": {"token", "bundle"},
    }
    seen: set[tuple[str, str]] = set()
    for title, query, legend in queries(deployed(sandbox)):
        found = wait(partial(sandbox.query, query), f"{title}: {query}")
        labels = re.findall(r"{{(\w+)}}", legend)
        assert labels
        for label in labels:
            values = {series["metric"].get(label) for series in found}
            assert None not in values
            assert values == promised.get(label, values), (title, query)
        names = [legend, *(tuple(series["metric"][label] for label in labels) for series in found)]
        assert set(Counter(names).values()) == {1}, (title, "two lines have one name")
        seen.add((title, legend))
    assert len(seen) >= 17


def test_the_variable_lists_the_queues(sandbox: Sandbox) -> None:
    [variable] = deployed(sandbox)["templating"]["list"]
    definition = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
    assert definition
    metric, label = definition.groups()
    assert {series["metric"][label] for series in sandbox.query(metric)} == set(api.QUEUES)


def test_the_preview_is_drawn_and_says_what_has_no_data(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "dashboard.png"
    command = ["--folder", str(sandbox.folder), "dashboard-preview", "--output", str(picture)]
    assert main(command) == 0
    told = capsys.readouterr()
    assert told.out == f"{picture}: a preview, not Grafana\n"
    assert told.err == ""
    assert picture.read_bytes().startswith(b"\x89PNG")

    [file] = sandbox.engine.provisioning.glob("dashboards/*/*.json")
    text = file.read_text()
    try:
        file.write_text(text.replace("sba_worker_active_jobs", "sba_worker_idle_jobs"))
        assert main(command) == 1
    finally:
        file.write_text(text)
    assert "no data for Active Jobs: sba_worker_idle_jobs{" in capsys.readouterr().err
