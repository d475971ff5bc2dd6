"""What is in force and what is not yet: tables of answers, true, old, half and lying."""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from monitoring import scrape, verify
from monitoring.verify import Answer, Declared, Line
from tests.certificates import self_signed
from tests.monitoring.conftest import MakeSettings

NAME = "prometheus-api.local"
CERTIFICATE, KEY = self_signed(NAME)
CONFIGURATION = "listen 9446;\n"
SHA256 = sha256(CONFIGURATION.encode()).hexdigest()
NOW = 1_800_000_000.0
END = NOW + 300 * 86_400
TWO = ("10.20.0.1:9446", "10.20.0.2:9446")

Sample = tuple[str, dict[str, str], float]
Samples = list[Sample]

DECLARED = {
    "build": "aaaaaaaaaaaa",
    "syncLate": 480,
    "tokenVersion": "token-2",
    "bundleVersion": "bundle-2",
    "certificateEnd": "2027-11-11T08:00:00.123456789Z",
}


def outputs(settings: MakeSettings, *targets: str, **changes: Any) -> dict[str, Any]:
    """As `pulumi stack output --json` gives them."""
    forms = scrape.forms(settings(), targets[0].partition(":")[0], {}, CERTIFICATE)
    return {
        **forms,
        "proxyTargets": [{"address": target} for target in targets],
        "proxyConfiguration": CONFIGURATION,
        "declared": {**DECLARED, **changes},
    }


@pytest.fixture
def declared(settings: MakeSettings) -> Declared:
    return Declared.read(outputs(settings, *TWO[:1]))


@pytest.fixture
def two(settings: MakeSettings) -> Declared:
    return Declared.read(outputs(settings, *TWO))


def good() -> Samples:
    """What a machine says on which all is in force."""
    each = [
        (name, {"endpoint": endpoint}, value)
        for name, value in (("upstream_http_status", 200.0), ("upstream_up", 1.0))
        for endpoint in ("api", "workers")
    ]
    return [
        ("configuration_info", {"sha256": SHA256, "build": "aaaaaaaaaaaa"}, 1.0),
        ("certificate_not_after_timestamp_seconds", {}, END),
        ("secret_info", {"secret": "token", "version": "token-2"}, 1.0),
        ("secret_info", {"secret": "bundle", "version": "bundle-2"}, 1.0),
        ("sync_timestamp_seconds", {}, NOW - 10),
        ("secret_sync_ok", {}, 1.0),
        ("sync_failed", {"reason": "token_refused"}, 0.0),
        ("sync_failed", {"reason": "fetch_bundle"}, 0.0),
        *each,
    ]


Change = Callable[[Samples], Samples]


def without(name: str, **labels: str) -> Change:
    """Samples of a metric are missing."""

    def change(samples: Samples) -> Samples:
        left = [s for s in samples if not (s[0] == name and labels.items() <= s[1].items())]
        assert len(left) < len(samples)
        return left

    return change


def other(name: str, value: float | None = None, **labels: str) -> Change:
    """The first sample of a metric with these labels, and with another value if one is given."""

    def change(samples: Samples) -> Samples:
        index = next(i for i, sample in enumerate(samples) if sample[0] == name)
        _, old, was = samples[index]
        new = (name, {**old, **labels}, was if value is None else value)
        return [*samples[:index], new, *samples[index + 1 :]]

    return change


def more(name: str, value: float, **labels: str) -> Change:
    return lambda samples: [*samples, (name, labels, value)]


def both(*changes: Change) -> Change:
    return lambda samples: functools.reduce(lambda it, change: change(it), changes, samples)


REFUSED = other("sync_failed", 1, reason="token_refused")

NOT_YET: dict[str, tuple[Change, dict[str, str]]] = {
    "an older machine": (
        other("configuration_info", build="bbbbbbbbbbbb"),
        {"machine": "build bbbbbbbbbbbb is in use, not aaaaaaaaaaaa: an older machine answers"},
    ),
    "a machine of a program without builds": (
        both(without("configuration_info"), more("configuration_info", 1, sha256=SHA256)),
        {"machine": "build none is in use"},
    ),
    "another configuration": (
        other("configuration_info", sha256="0" * 64),
        {"configuration": f"sha256 {'0' * 64} is in use, not "},
    ),
    "nothing in use": (
        both(
            without("configuration_info"),
            without("certificate_not_after_timestamp_seconds"),
            without("secret_info"),
            other("secret_sync_ok", 0),
        ),
        {
            "machine": "none is in use",
            "configuration": "none is in use",
            "certificate": "none is in use",
            "token": "none is in use",
            "bundle": "none is in use",
            "sync": "not every secret is in use",
        },
    ),
    "another certificate": (
        other("certificate_not_after_timestamp_seconds", END - 1),
        {"certificate": "until 2027-11-11 07:59:59 UTC is in use, not 2027-11-11 08:00:00 UTC: "},
    ),
    "an end that is no date": (
        other("certificate_not_after_timestamp_seconds", float("inf")),
        {"certificate": "until inf is in use"},
    ),
    "the token before": (
        other("secret_info", version="token-1"),
        {"token": "version token-1 is in use, not token-2: the next sync brings it"},
    ),
    "two tokens": (
        more("secret_info", 1, secret="token", version="token-1"),
        {"token": "version token-1, token-2 is in use, not token-2"},
    ),
    "a version that is not in use": (
        other("secret_info", 0),
        {"token": "version none is in use"},
    ),
    "a refused token": (
        both(other("secret_info", version="token-1"), REFUSED, other("secret_sync_ok", 0)),
        {
            "token": "version token-1 is in use, not token-2: the sync says token_refused",
            "sync": "fails: token_refused; docs/runbook.md",
        },
    ),
    "a failure, and all in use": (
        more("sync_failed", 1, reason="fetch_token"),
        {"sync": "fails: fetch_token"},
    ),
    "half a bundle": (
        more("secret_info", 1, secret="bundle", version="bundle-1"),
        {"bundle": "version bundle-1, bundle-2 is in use, not bundle-2"},
    ),
    "a sync that stopped": (
        other("sync_timestamp_seconds", NOW - 481),
        {"sync": "last ran 481 s ago: it does not run"},
    ),
    "a sync of the future": (
        other("sync_timestamp_seconds", NOW + 481),
        {"sync": "last ran -481 s ago"},
    ),
    "no time": (without("sync_timestamp_seconds"), {"sync": "says nothing of itself"}),
    "no reasons": (without("sync_failed"), {"sync": "says nothing of itself"}),
    "not in sync": (other("secret_sync_ok", 0), {"sync": "not every secret is in use"}),
    "no word of being in sync": (without("secret_sync_ok"), {"sync": "not every secret is in use"}),
    "a token that the API rejects": (
        both(other("upstream_http_status", 401), other("upstream_up", 0)),
        {"API": "api answers 401"},
    ),
    "an API that is down": (
        both(other("upstream_http_status", 0), other("upstream_up", 0)),
        {"API": "api does not answer"},
    ),
    "a page of HTML": (
        other("upstream_up", 0),
        {"API": "api answers with what Prometheus refuses"},
    ),
    "an endpoint that is not asked yet": (
        without("upstream_http_status", endpoint="workers"),
        {"API": "workers is not known"},
    ),
    "an endpoint of which half is said": (
        without("upstream_up", endpoint="workers"),
        {"API": "workers answers with what Prometheus refuses"},
    ),
    "nothing at all": (
        lambda _: [],
        {
            "machine": "none",
            "configuration": "none",
            "certificate": "none",
            "token": "none",
            "bundle": "none",
            "sync": "says nothing",
            "API": "api is not known; workers is not known",
        },
    ),
}


def wrong(lines: list[Line]) -> dict[str, str]:
    found = {line.what: line.text for line in lines if not line.ok}
    assert len(found) == sum(not line.ok for line in lines), "a line each"
    return found


def test_all_is_in_force(two: Declared) -> None:
    lines = verify.compare(two, {target: [Answer(good(), NOW)] for target in TWO})
    assert [(line.ok, line.what) for line in lines] == [(True, what) for what in verify.CHECKS]


@pytest.mark.parametrize("case", NOT_YET)
def test_what_is_not_yet_in_force_is_named_and_nothing_else(declared: Declared, case: str) -> None:
    change, expected = NOT_YET[case]
    [target] = declared.targets
    found = wrong(verify.compare(declared, {target: [Answer(change(good()), NOW)]}))
    assert found.keys() == expected.keys()
    assert {what: text for what, text in found.items() if not text.startswith(f"{target}: ")} == {}
    assert [what for what, text in found.items() if expected[what] not in text] == []


@pytest.mark.parametrize("case", NOT_YET)
def test_one_of_two_machines_and_one_of_eight_answers_are_enough(two: Declared, case: str) -> None:
    change, expected = NOT_YET[case]
    old, new = Answer(change(good()), NOW), Answer(good(), NOW)
    found = wrong(verify.compare(two, {TWO[0]: 8 * [new], TWO[1]: [*7 * [new], old]}))
    assert found.keys() == expected.keys()
    for text in found.values():
        assert text.startswith(f"{TWO[1]}: ")
        assert text.endswith(" (1 of 8 answers)")


def test_a_machine_that_says_nothing_is_not_in_force(two: Declared) -> None:
    answer = [Answer(good(), NOW)]
    assert wrong(verify.compare(two, {TWO[0]: answer, TWO[1]: ["is silent"]})) == {
        "machine": f"{TWO[1]}: is silent"
    }
    for nothing in ({TWO[0]: answer}, {TWO[0]: answer, TWO[1]: []}):
        assert wrong(verify.compare(two, nothing)) == {"machine": f"{TWO[1]}: has not been asked"}
    assert len(verify.compare(two, {it: ["is silent"] for it in TWO})) == 2
    # it has answered before
    half = verify.compare(two, {TWO[0]: answer, TWO[1]: [*answer, "is silent"]})
    assert wrong(half) == {"machine": f"{TWO[1]}: is silent"}


def test_a_token_of_others_is_only_said(settings: MakeSettings) -> None:
    declared = Declared.read(outputs(settings, TWO[0], tokenVersion=None))
    change = other("secret_info", version="theirs")
    lines = verify.compare(declared, {TWO[0]: [Answer(change(good()), NOW)]})
    assert wrong(lines) == {}
    assert "version theirs is in use; the stack does not know" in str(lines)
    # on all machines the same one, at least
    answers = [Answer(good(), NOW), Answer(change(good()), NOW)]
    lines = verify.compare(declared, {TWO[0]: answers})
    assert wrong(lines).keys() == {"token"}
    assert "is not everywhere the same: " in wrong(lines)["token"]
    none = Answer(without("secret_info", secret="token")(good()), NOW)
    assert wrong(verify.compare(declared, {TWO[0]: [none]})).keys() == {"token"}


def test_a_certificate_that_has_ended_is_not_in_force(declared: Declared) -> None:
    late = other("sync_timestamp_seconds", END)(good())
    found = wrong(verify.compare(declared, {TWO[0]: [Answer(late, END)]}))
    assert found == {
        "certificate": f"{TWO[0]}: has ended on 2027-11-11 08:00:00 UTC: pulumi up renews it"
    }


def test_a_zone_is_said(settings: MakeSettings) -> None:
    found = outputs(settings, *TWO)
    found["proxyTargets"][1]["zone"] = "eu-central-1b"
    lines = verify.compare(Declared.read(found), {it: ["is silent"] for it in TWO})
    assert [line.text for line in lines] == [
        f"{TWO[0]}: is silent",
        f"{TWO[1]} (eu-central-1b): is silent",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("declared", None),
        ("declared", {}),
        ("declared", {**DECLARED, "certificateEnd": "soon"}),
        ("proxyTargets", []),
        ("proxyTargets", [{}]),
        ("proxyConfiguration", None),
        ("scrapeConfigList", "[]"),
        ("scrapeConfigList", "{"),
    ],
)
def test_outputs_of_another_program_are_refused_in_one_line(
    settings: MakeSettings, key: str, value: Any
) -> None:
    with pytest.raises(verify.VerifyError, match="not this program's") as refused:
        Declared.read({**outputs(settings, *TWO), key: value})
    assert "\n" not in str(refused.value)


# -- through Prometheus


def result(samples: dict[str, Samples], **up: float) -> dict[str, Any]:
    """What Prometheus answers: the samples of each target, and the last scrapes."""
    series: list[tuple[dict[str, str], float]] = []
    for target, some in samples.items():
        own = {"job": "sba-proxy", "instance": target}
        series += [({"__name__": f"metrics_proxy_{n}", **own, **ls}, v) for n, ls, v in some]
        series.append(({"__name__": "up", **own}, 1))
    for endpoint, value in {"api": 1.0, "workers": 1.0, **up}.items():
        labels = {"__name__": "up", "job": "sba-api", "endpoint": endpoint}
        series.append((labels, value))
    found = [{"metric": labels, "value": [NOW, str(value)]} for labels, value in series]
    return {"status": "success", "data": {"resultType": "vector", "result": found}}


def look(declared: Declared, document: Any) -> list[Line]:
    answers, scrapes = verify.answers_of(declared, document)
    return [*verify.compare(declared, answers), *scrapes]


def test_prometheus_has_seen_it_in_force(two: Declared) -> None:
    lines = look(two, result(dict.fromkeys(TWO, good())))
    assert wrong(lines) == {}
    assert [line.what for line in lines] == [*verify.CHECKS, "scrapes"]


@pytest.mark.parametrize("case", NOT_YET)
def test_prometheus_has_seen_one_of_two_machines_otherwise(two: Declared, case: str) -> None:
    change, expected = NOT_YET[case]
    found = wrong(look(two, result({TWO[0]: good(), TWO[1]: change(good())})))
    assert found.keys() == expected.keys()
    assert all(text.startswith(f"{TWO[1]}: ") for text in found.values())


def test_prometheus_has_seen_old_and_new_in_the_window(declared: Declared) -> None:
    old = other("configuration_info", build="bbbbbbbbbbbb")(good())
    found = wrong(look(declared, result({TWO[0]: [*good(), old[0]]})))
    assert found.keys() == {"machine"}
    assert "build aaaaaaaaaaaa, bbbbbbbbbbbb is in use" in found["machine"]


def test_prometheus_scrapes_another_machine(two: Declared) -> None:
    found = wrong(look(two, result({TWO[0]: good(), "10.9.9.9:9446": good()})))
    assert found.keys() == {"machine"}
    assert found["machine"].startswith(f"{TWO[1]}: Prometheus has not scraped it for 5m")


@pytest.mark.parametrize("up", [{"workers": 0.0}, {"workers": float("nan")}])
def test_prometheus_fails_to_scrape_an_endpoint(declared: Declared, up: dict[str, float]) -> None:
    found = wrong(look(declared, result({TWO[0]: good()}, **up)))
    assert found.keys() == {"scrapes"}
    assert found["scrapes"].startswith("scrapes of workers fail")


def test_prometheus_does_not_scrape_an_endpoint_yet(declared: Declared) -> None:
    document = result({TWO[0]: good()})
    document["data"]["result"].pop()
    found = wrong(look(declared, document))
    assert found == {"scrapes": "workers is not scraped: give Prometheus the output scrapeConfig"}


def test_prometheus_fails_to_scrape_the_machine(declared: Declared) -> None:
    """What it has seen before of it is no word of now."""
    document = result({TWO[0]: good()})
    for one in document["data"]["result"]:
        if one["metric"] == {"__name__": "up", "job": "sba-proxy", "instance": TWO[0]}:
            one["value"][1] = "0"
    found = wrong(look(declared, document))
    assert found.keys() == {"machine"}
    assert "Prometheus' scrapes of it fail" in found["machine"]


def test_prometheus_knows_nothing(declared: Declared) -> None:
    lines = look(declared, {"status": "success", "data": {"result": []}})
    assert [line.ok for line in lines] == 3 * [False]
    assert [line.what for line in lines] == ["machine", "scrapes", "scrapes"]


# -- asking


Reply = Callable[[http.server.BaseHTTPRequestHandler], None]


def exposition(samples: Samples) -> bytes:
    def text(labels: dict[str, str]) -> str:
        return ",".join(f'{name}="{value}"' for name, value in labels.items())

    lines = [f"metrics_proxy_{name}{{{text(labels)}}} {value}\n" for name, labels, value in samples]
    return "".join(lines).encode()


def says(body: bytes, status: int = 200, length: int | None = None, **headers: str) -> Reply:
    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response_only(status)
        for name, value in {"Date": formatdate(NOW, usegmt=True), **headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


GOOD = says(exposition(good()))
OLD = says(exposition(other("configuration_info", build="bbbbbbbbbbbb")(good())))


@contextlib.contextmanager
def server(
    folder: Path, *replies: Reply, pair: tuple[str, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A server with TLS if there is a certificate, with its replies in turn; what it was asked."""
    turn, asked = itertools.cycle(replies), list[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Authorization')}")
            with contextlib.suppress(OSError):
                next(turn)(self)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that does not trust it goes away."""

    with Quiet(("127.0.0.1", 0), Handler) as running:
        if pair:
            (folder / "pair.pem").write_text("".join(pair))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "pair.pem")
            running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def silent(_: object) -> None:
    """Nothing is answered before the connection is closed."""


@pytest.mark.parametrize(
    ("replies", "what", "text"),
    [
        ([GOOD], None, ""),
        ([*7 * [GOOD], OLD], "machine", "an older machine answers, wait for its end (1 of 8 answe"),
        ([GOOD, OLD], "machine", "an older machine answers, wait for its end (4 of 8 answers)"),
        ([says(b"", 403)], "machine", "does not answer (it answers 403): is this address in prom"),
        ([says(b"", 503)], "machine", "does not answer (it answers 503)"),
        ([says(b"", 302, Location="/m")], "machine", "does not answer (it answers 302)"),
        ([silent], "machine", "does not answer (Remote end closed connection without response)"),
        ([says(b"<html>\xff")], "machine", "what /metrics/proxy answers are no metrics"),
        ([says(b"<html>no metrics</html>")], "machine", "what /metrics/proxy answers are no metr"),
        ([says(exposition(good()), Date="?")], "machine", "what /metrics/proxy answers are no me"),
        ([says(exposition(good()), length=10**6)], "machine", "does not answer (IncompleteRead("),
        # what it says is well, and what it serves is not
        ([*8 * [GOOD], says(b"", 502)], "scrapes", ": a scrape of api fails: it answers 502"),
        ([*9 * [GOOD], silent], "scrapes", ": a scrape of workers fails: Remote end closed"),
    ],
)
def test_a_machine_is_asked_on_eight_connections(
    settings: MakeSettings, tmp_path: Path, replies: list[Reply], what: str | None, text: str
) -> None:
    with server(tmp_path, *replies, pair=(CERTIFICATE, KEY)) as (target, asked):
        lines = verify.directly(Declared.read(outputs(settings, target)))
    found = wrong(lines)
    assert list(found) == ([what] if what else [])
    if what:
        assert text in found[what]
    if what == "machine" and len(replies) == 1:
        assert asked == ["/metrics/proxy None"]
    else:
        assert asked[:-2] == verify.CONNECTIONS * ["/metrics/proxy None"]
        assert asked[-2:] == ["/metrics None", "/metrics/workers None"]


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (self_signed(NAME), "its certificate is refused: "),
        (self_signed("another.local"), "its certificate is refused: "),
    ],
)
def test_another_ca_is_not_believed(
    settings: MakeSettings, tmp_path: Path, pair: tuple[str, str], text: str
) -> None:
    with server(tmp_path, GOOD, pair=pair) as (target, asked):
        found = wrong(verify.directly(Declared.read(outputs(settings, target))))
    assert found.keys() == {"machine"}
    assert text in found["machine"]
    assert asked == []


def test_another_name_is_not_believed(settings: MakeSettings, tmp_path: Path) -> None:
    pair = self_signed("another.local")
    found = {**outputs(settings, TWO[0])}
    found |= scrape.forms(settings(), "127.0.0.1", {}, pair[0])
    with server(tmp_path, GOOD, pair=pair) as (target, _):
        found["proxyTargets"] = [{"address": target}]
        [line] = verify.directly(Declared.read(found))
    assert "its certificate is refused: Hostname mismatch" in line.text


def test_one_of_two_cas_is_enough(settings: MakeSettings, tmp_path: Path) -> None:
    """While the CA's key is replaced."""
    found = outputs(settings, TWO[0])
    previous = settings(previousCaCertificate=CERTIFICATE)
    found |= scrape.forms(previous, "127.0.0.1", {}, self_signed("new CA")[0])
    with server(tmp_path, GOOD, pair=(CERTIFICATE, KEY)) as (target, _):
        found["proxyTargets"] = [{"address": target}]
        assert wrong(verify.directly(Declared.read(found))) == {}


def test_a_proxy_out_of_reach_is_one_line(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as hangs, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        targets = [f"127.0.0.1:{it.getsockname()[1]}" for it in (hangs, closed)]
        lines = verify.directly(Declared.read(outputs(settings, *targets)))
    assert [line.what for line in lines] == ["machine", "machine"]
    assert "does not answer (" in lines[0].text
    assert "timed out" in lines[0].text
    assert "does not answer (Connection refused)" in lines[1].text


def test_prometheus_is_asked_once_with_its_password_which_is_not_shown(
    declared: Declared, tmp_path: Path
) -> None:
    reply = says(json.dumps(result({TWO[0]: good()})).encode())
    with server(tmp_path, reply) as (address, asked):
        assert wrong(verify.through(declared, f"http://me:p%40ss@{address}/prometheus/")) == {}
    [request] = asked
    assert request.startswith("/prometheus/api/v1/query?query=last_over_time")
    assert request.endswith(" Basic bWU6cEBzcw==")
    [line] = verify.through(declared, f"http://me:p%40ss@{address}")
    assert not line.ok
    assert line.text.startswith(f"http://{address} does not answer: ")


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (says(b'{"status":"error","errorType":"bad_data","error":"x"}', 400), "it answers 400"),
        (says(b'{"status":"error","errorType":"timeout","error":"x"}'), "no result of a query"),
        (says(b"", 302, Location="http://127.0.0.1:9/"), "it answers 302"),
        (says(b"<html>"), "no result of a query"),
        (says(b'{"data":{"result":[{"metric":{},"value":[0,"1"]}]}}'), "no result of a query"),
        (says(b'{"data":{"result":"x"}}'), "no result of a query"),
        (says(b"[]"), "no result of a query"),
        (silent, "Remote end closed connection"),
    ],
)
def test_a_prometheus_that_answers_otherwise_is_one_line(
    declared: Declared, tmp_path: Path, reply: Reply, text: str
) -> None:
    with server(tmp_path, reply) as (address, _):
        [line] = verify.through(declared, f"http://{address}")
    assert not line.ok
    assert text in line.text


# -- the command


def run(
    monkeypatch: pytest.MonkeyPatch, found: list[list[Line]], *arguments: str
) -> tuple[int, int]:
    """The exit status with these findings, the last for ever, and how many were looked at."""
    looks = iter([*found, *itertools.repeat(found[-1], 100)])
    count = 0

    def directly(_: Declared) -> list[Line]:
        nonlocal count
        count += 1
        return next(looks)

    monkeypatch.setattr(verify, "directly", directly)
    monkeypatch.setattr(verify, "PAUSE", 0.01)
    monkeypatch.delenv("PROMETHEUS_URL", raising=False)
    return verify.main([*arguments]), count


YES, NO = Line(True, "token", "version 2"), Line(False, "token", "version \x1b[31m1\n is in use")


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, settings: MakeSettings) -> None:
    monkeypatch.setattr(verify, "outputs", lambda _: outputs(settings, *TWO))


@pytest.mark.parametrize(
    ("found", "arguments", "expected"),
    [
        ([[YES]], [], (0, 1)),
        ([[NO], [YES]], [], (1, 1)),
        ([[NO, YES], [YES]], ["--wait", "60"], (0, 2)),
        ([[NO], [NO, YES], [YES]], ["--wait", "60"], (0, 3)),
    ],
)
@pytest.mark.usefixtures("stack")
def test_the_command_waits_when_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: list[list[Line]],
    arguments: list[str],
    expected: tuple[int, int],
) -> None:
    assert run(monkeypatch, found, *arguments) == expected
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == len(found[expected[1] - 1])
    assert said.err.count("s, not yet in force: token\n") == expected[1] - 1


@pytest.mark.usefixtures("stack")
def test_the_wait_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, count = run(monkeypatch, [[NO]], "--wait", "0.05")
    assert status == 1
    assert 1 < count <= 5
    assert capsys.readouterr().out == "not yet   token          version ?[31m1? is in use\n"


@pytest.mark.usefixtures("stack")
def test_colours_are_for_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, [[YES, NO]])
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    run(monkeypatch, [[YES, NO]])
    out = capsys.readouterr().out
    assert "\x1b[32min force\x1b[0m  token" in out
    assert "\x1b[31mnot yet \x1b[0m  token" in out


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("echo error: no stack named x found >&2; exit 255", "error: no stack named x found"),
        ("exit 3", "pulumi ends with 3"),
        ("echo '{}'", "not this program's (KeyError('scrapeConfigList')); run pulumi up"),
        (None, "pulumi is not on $PATH"),
    ],
)
def test_a_stack_that_says_nothing_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    program: str | None,
    text: str,
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if program else str(tmp_path))
    if program:
        (tmp_path / "pulumi").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "pulumi").chmod(0o755)
    assert verify.main(["--stack", "x", "--wait", "60"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert text in said.err


def test_a_url_that_is_none_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMETHEUS_URL", "me:secret@prometheus:9090")
    assert verify.main(["--wait", "60"]) == 1
    assert capsys.readouterr().err == "verify: PROMETHEUS_URL: is no http or https URL\n"


def test_no_secret_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pulumi").write_text('#!/bin/sh\necho "$@" >&2; exit 1\n')
    (tmp_path / "pulumi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(verify.VerifyError, match=r"^stack output --json --stack dev$"):
        verify.outputs("dev")
