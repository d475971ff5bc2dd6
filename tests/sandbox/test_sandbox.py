"""The running system: what Prometheus sees, what a client may, and where the token is not."""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import http.client
import json
import os
import signal
import socket
import ssl
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import api
from sandbox.processes import wait
from sandbox.sandbox import PROMETHEUS_CIDR, SYNC_INTERVAL, Sandbox
from tests.sandbox.conftest import CANARY

TARGETS = 'up{job=~"sba-api|sba-proxy"}'


def failed_scrapes(sandbox: Sandbox, since: float) -> int:
    """Scrapes that failed since a moment. One sample a second and target."""
    seconds = int(time.time() - since) + 1
    counts = sandbox.query(f"sum(count_over_time({TARGETS}[{seconds}s]))")
    good = sandbox.query(f"sum(sum_over_time({TARGETS}[{seconds}s]))")
    assert float(counts[0]["value"][1]) > 0
    return round(float(counts[0]["value"][1]) - float(good[0]["value"][1]))


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


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("POST", "/metrics", None),
        ("DELETE", "/metrics", None),
        ("TRACE", "/metrics", None),
        ("OPTIONS", "/metrics", None),
        ("GET", "/metrics", "a body"),
        ("GET", "/metrics?x=1", None),
        ("GET", "/metrics?", None),
        ("GET", "/METRICS", None),
        ("GET", "/metricsfoo", None),
        ("GET", "/metrics/", None),
        ("GET", "/metrics/x", None),
        ("GET", "//metrics", None),
        ("GET", "/%6detrics", None),
        ("GET", "/metrics%2fworkers", None),
        ("GET", "/x/../metrics", None),
        ("GET", "/metrics/..;/admin", None),
        ("GET", "/", None),
        ("GET", "/admin", None),
    ],
)
def test_nothing_else_passes(sandbox: Sandbox, method: str, target: str, body: str | None) -> None:
    agent = f"forbidden-{method}-{urllib.parse.quote(target, safe='')}-{body}"
    status, text = raw(sandbox, target, method, {"User-Agent": agent}, body)
    assert status in (400, 404, 405)
    assert CANARY.encode() not in text
    assert not [r for r in requests(sandbox) if ["User-Agent", agent] in r["headers"]]


GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUser-Agent: raw\r\n"
RAW = {
    "length and chunks": b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: y\r\n\r\n",
    "a GET with chunks": GET + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "two lengths": GET + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
    "a pipelined second": b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    b"GET /admin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "a folded header": GET + b"Accept: a\r\n Authorization: Bearer mine\r\n\r\n",
    "a bare CR": GET + b"Accept: a\rAuthorization: Bearer mine\r\n\r\n",
    "an absolute URI": b"GET http://other/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "HTTP/1.0": b"GET /metrics HTTP/1.0\r\n\r\n",
    "HTTP/0.9": b"GET /metrics\r\n",
    "a NUL": b"GET /metrics\x00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "a fragment": b"GET /metrics#a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "an upgrade": GET + b"Connection: Upgrade, Authorization\r\nUpgrade: h2c\r\n\r\n",
    "an overridden method": GET + b"X-HTTP-Method-Override: DELETE\r\nX-Original-URL: /x\r\n\r\n",
    "proxy headers": GET + b"X_Forwarded_For: 1\r\nForwarded: for=1\r\nVia: a\r\n\r\n",
    "a range": GET + b"Range: bytes=0-3\r\nIf-None-Match: *\r\nExpect: 100-continue\r\n\r\n",
}
PASSED_ON = {
    *("accept", "accept-encoding", "authorization", "connection", "host", "user-agent"),
    *("x-forwarded-for", "x-forwarded-proto", "x-prometheus-scrape-timeout-seconds"),
}


@pytest.mark.parametrize("kind", RAW)
def test_of_raw_bytes_only_plain_scrapes_reach_the_api(sandbox: Sandbox, kind: str) -> None:
    proxy, before = where(sandbox), len(requests(sandbox))
    context = ssl.create_default_context(cafile=proxy["ca_file"])
    answer = b""
    with (
        socket.create_connection((proxy["address"], proxy["port"]), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=proxy["server_name"]) as connection,
    ):
        connection.sendall(RAW[kind])
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := connection.recv(65536):
                answer += data
    assert answer
    for secret in ("Authorization", "Set-Cookie", "X-Powered-By", "nginx/", CANARY):
        assert secret.encode() not in answer
    for request in requests(sandbox)[before:]:
        names = [name.lower() for name, _ in request["headers"]]
        assert request["method"] in ("GET", "HEAD")
        assert request["target"] in ("/metrics", "/metrics/workers")
        assert request["authorized"]
        assert len(names) == len(set(names))
        assert set(names) <= PASSED_ON


def test_only_the_prometheus_cidrs_are_served(sandbox: Sandbox) -> None:
    assert raw(sandbox, "/metrics")[0] == 200
    for target in ("/metrics", "/metrics/workers", "/metrics/proxy"):
        assert raw(sandbox, target, source="127.0.0.2")[0] == 403


def test_a_head_is_a_get_without_its_body(sandbox: Sandbox) -> None:
    assert raw(sandbox, "/metrics", "HEAD") == (200, b"")


def spellings(token: str) -> list[bytes]:
    plain = token.encode()
    return [
        plain,
        base64.b64encode(plain).rstrip(b"=")[:-1],
        urllib.parse.quote(token, safe="").encode(),
    ]


def holds(data: bytes, token: str) -> bool:
    """Whether a token is in there: as it is, in base64 at any offset, URL-encoded, or gzipped."""
    if data[:2] == b"\x1f\x8b":
        data += gzip.decompress(data)
    shifted = [base64.b64encode(b" " * n + token.encode())[4:-4] for n in range(3)]
    return any(form in data for form in [*spellings(token), *shifted])


def files_with(folder: Path, token: str) -> set[str]:
    found = set()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and holds(file.read_bytes(), token):
            found.add(str(file.relative_to(folder)))
    return found


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

    include = sandbox.root / "run/metrics-proxy/current/token.conf"
    found = files_with(sandbox.folder, CANARY)
    assert found == {str(include.resolve().relative_to(sandbox.folder))}

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
    for _ in range(10):
        sandbox.rotate_token()
    assert failed_scrapes(sandbox, began) == 0
    assert len(api.accepted(sandbox.api)) == 1


def test_a_refused_token_is_adopted_once_the_api_takes_it(sandbox: Sandbox) -> None:
    began, token = time.time(), "a-token-the-api-does-not-know-yet"
    sandbox.engine.set_secret("adminToken", token)
    sandbox.engine.up()
    wait(lambda: metric(sandbox, 'sync_failed{reason="token_refused"} 1.0'), "the refusal")
    assert sandbox.get("/metrics")[0] == 200
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
    token = "the-old-one-is-dead-already"
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


@pytest.mark.parametrize("token", ['a"; return 200 "', "a\r\nX: y", "a b", "", "x" * 3901, "$a"])
def test_a_malformed_token_leaves_the_last_good_one(sandbox: Sandbox, token: str) -> None:
    secrets = sandbox.account.client("secretsmanager")
    arn = sandbox.engine.outputs()["tokenSecretArn"]
    good = secrets.get_secret_value(SecretId=arn)["SecretString"]
    began = time.time()
    secrets.put_secret_value(SecretId=arn, SecretString=token or " ")
    try:
        wait(lambda: metric(sandbox, 'sync_failed{reason="token_invalid"} 1.0'), "the refusal")
    finally:
        secrets.put_secret_value(SecretId=arn, SecretString=good)
    wait(lambda: metric(sandbox, "secret_sync_ok 1.0"), "the sync to be well again")
    assert failed_scrapes(sandbox, began) == 0


def test_a_changed_endpoint_and_cidr_lose_no_scrape(sandbox: Sandbox) -> None:
    began = time.time()
    machine = sandbox.engine.outputs()["instanceId"]
    config = yaml.safe_load(sandbox.engine.config_file.read_text())["config"]
    endpoints = config["metrics-proxy:endpoints"]
    again = {**endpoints[1], "name": "again", "path": "/metrics/again"}
    sandbox.engine.configure(
        {"endpoints": [*endpoints, again], "prometheusCidrs": [PROMETHEUS_CIDR, "127.0.0.3/32"]}
    )
    sandbox.engine.up()
    wait(
        lambda: sandbox.get("/metrics/again")[0] == 200,
        "the endpoint to be served",
        SYNC_INTERVAL + 5,
    )
    assert raw(sandbox, "/metrics/again", source="127.0.0.3")[0] == 200
    assert sandbox.engine.outputs()["instanceId"] == machine
    sandbox.up()
    assert {s["metric"]["endpoint"] for s in sandbox.query('up{job="sba-api"}')} == {
        "api",
        "workers",
        "again",
    }
    sandbox.engine.configure({"endpoints": endpoints, "prometheusCidrs": [PROMETHEUS_CIDR]})
    assert failed_scrapes(sandbox, began) == 0
    sandbox.up()


def test_a_broken_configuration_does_not_hold_back_a_token(sandbox: Sandbox) -> None:
    secrets, outputs = sandbox.account.client("secretsmanager"), sandbox.engine.outputs()
    good = secrets.get_secret_value(SecretId=outputs["bundleSecretArn"])["SecretString"]
    token, began = "rotated-beside-a-broken-configuration", time.time()
    broken = json.loads(good)
    broken["configuration"] = broken["configuration"].replace("proxy_pass ", "proxy_passs ")
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
    file = sandbox.root / "run/metrics-proxy-server/nginx.pid"
    old = file.read_text()
    os.kill(int(old), number)
    wait(
        lambda: file.exists() and file.read_text() not in ("", old) and sandbox.proxy_metrics(),
        "the server to come back",
    )
    assert sandbox.get("/metrics")[0] == 200
