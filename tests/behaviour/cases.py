"""What a proxy is asked, and what it has to answer: one row for each case."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from tests.behaviour.proxies import BY_HAND, KINDS, OURS, Proxy, StartError
from tests.behaviour.upstream import CANARY, Received
from tests.behaviour.wire import CLIENT, SERVER_NAME, Answer, context, exchange, holds

PARSER: Final = "refused by one's parser, by the other's rule"
STRICT: Final = "nginx takes LF for a line end, Apache does not"
RULE: Final = "nginx answers 501 to what it does not implement"
TIMEOUT: Final = "mod_proxy answers 502 to a read that times out"
MOD_PROXY: Final = "mod_proxy's own status for it"

Send = bytes | Callable[[socket.socket], None]


@dataclass(frozen=True, eq=False)
class Case:
    """One row. `nginx` and `apache` are what ours answer, in the words of `Answer`."""

    group: str
    name: str
    send: Send
    nginx: str
    apache: str = ""
    """The same as `nginx`, unless `why` says the reason."""
    why: str = ""
    reaches: int | None = None
    """How many requests reach the API; by default, as many as there are answers with a 200."""
    connect: dict[str, Any] = field(default_factory=dict)
    """Of `exchange`."""
    start: dict[str, Any] = field(default_factory=dict)
    """Of `Proxy`."""
    slow: bool = False
    """Whether it takes seconds."""
    kinds: tuple[str, ...] = KINDS
    by_hand: str = ""
    """What those by hand answer, if it is something else: they have no document of their own."""

    def expected(self, kind: str) -> str:
        if kind in BY_HAND and self.by_hand:
            return self.by_hand
        return self.apache or self.nginx if "apache" in kind else self.nginx

    def expected_requests(self, kind: str) -> int:
        if kind in BY_HAND and self.by_hand:
            return 0
        return self.expected(kind).count("200") if self.reaches is None else self.reaches


@dataclass(frozen=True)
class Outcome:
    """What came of a case at one proxy."""

    answer: Answer
    received: list[Received]

    @property
    def leaks(self) -> bool:
        return holds(self.answer.data, CANARY)

    def __str__(self) -> str:
        """The answer, and what is wrong with that which reached the API."""
        text = str(self.answer) + "; **the token is in the answer**" * self.leaks
        for request in self.received:
            if wrong := {k: v for k, v in request.objections().items() if k != "own headers"}:
                token = "" if request.has_token else " without the token"
                headers = f", with {wrong['headers']}" if wrong.get("headers") else ""
                body = ", with a body" if "body" in wrong else ""
                text += f"; reached the API{token}: {request.line}{headers}{body}"
        return text


def request(
    target: str = "/metrics",
    *lines: str,
    method: str = "GET",
    version: str = " HTTP/1.1",
    host: str | None = SERVER_NAME,
    body: str = "",
) -> bytes:
    """A request that closes its connection."""
    head = [f"{method} {target}{version}", *([f"Host: {host}"] if host is not None else ())]
    return ("\r\n".join([*head, *lines, "Connection: close", "", ""]) + body).encode("latin-1")


def wants(want: str, method: str = "GET") -> bytes:
    """A scrape, answered by the API as `want` says."""
    return request("/metrics", f"User-Agent: want={want}", method=method)


def slowly(text: bytes, seconds: float = 1) -> Callable[[socket.socket], None]:
    """Send a byte at a time."""

    def send(connection: socket.socket) -> None:
        for byte in text:
            connection.sendall(bytes([byte]))
            time.sleep(seconds)

    return send


def wait_before_reading(connection: socket.socket) -> None:
    """Ask for the large document, and take none of it for longer than the proxy waits."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(wants("large"))
    time.sleep(14)


def _paths() -> list[Case]:
    unlisted = {
        "another path": "/admin",
        "the root": "/",
        "a longer name": "/metricsfoo",
        "a path below": "/metrics/users/1",
        "a slash at the end": "/metrics/",
        "two slashes": "//metrics",
        "two slashes within": "/metrics//workers",
        "capitals": "/METRICS",
        "an encoded letter": "/%6detrics",
        "an encoded slash": "/metrics%2fworkers",
        "an encoded NUL": "/metrics%00",
        "an encoded line end": "/metrics%0d%0aX:1",
        "encoded twice": "/%256detrics",
        "a dot": "/./metrics",
        "two dots": "/x/../metrics",
        "two dots to elsewhere": "/metrics/../admin",
        "encoded dots": "/metrics/%2e%2e/admin",
        "a path parameter": "/metrics;a=1",
        "two dots and a parameter": "/metrics/..;/admin",
        "a backslash": "/metrics\\..\\admin",
        "a query": "/metrics?all=1",
        "an empty query": "/metrics?",
        "a fragment": "/metrics#a",
        "an overlong slash": "/metrics%c0%af",
        "a byte above 127": "/metrics\xe9",
        "below the own document": "/metrics/proxy/x",
        "a query of the own document": "/metrics/proxy?a",
    }
    decoded = {"an encoded NUL": ("400", "404", "nginx decodes the path before it asks the map")}
    decoded["a fragment"] = ("404", "400", "Apache's parser refuses one")
    return [
        Case("Paths", "`/metrics`", request(), "200"),
        Case("Paths", "`/metrics/workers`", request("/metrics/workers"), "200"),
        Case(
            "Paths", "`/metrics/proxy`", request("/metrics/proxy"), "200", reaches=0, by_hand="404"
        ),
        *(Case("Paths", f"{n}: `{t}`", request(t), *decoded.get(n, ("404",))) for n, t in unlisted.items()),
    ]


def _request_lines() -> list[Case]:
    def line(name: str, text: str, *answers: str, host: bool = True, **more: Any) -> Case:
        rest = f"\r\nHost: {SERVER_NAME}\r\nConnection: close\r\n\r\n" if host else "\r\n"
        return Case("Request line", name, (text + rest).encode("latin-1"), *answers, **more)

    return [
        line("an absolute URI", f"GET https://{SERVER_NAME}/metrics HTTP/1.1", "404"),
        line("an absolute URI of elsewhere", "GET http://other:9/metrics HTTP/1.1", "404"),
        line("an authority", "CONNECT api:9464 HTTP/1.1", "400", "405", PARSER),
        line("an asterisk", "OPTIONS * HTTP/1.1", "400", "405", PARSER),
        line("no slash", "GET metrics HTTP/1.1", "400"),
        line("two spaces", "GET  /metrics HTTP/1.1", "404", "400", PARSER),
        line("a space at the end", "GET /metrics HTTP/1.1 ", "404", "400", PARSER),
        line("a tab", "GET\t/metrics\tHTTP/1.1", "400"),
        line("a space in the path", "GET /metrics x HTTP/1.1", "400"),
        line("a NUL", "GET /metrics\0 HTTP/1.1", "400"),
        line("a vertical tab", "GET /metrics\x0b HTTP/1.1", "400"),
        line("an empty line before", "\r\nGET /metrics HTTP/1.1", "200"),
        line("bare LF", f"GET /metrics HTTP/1.1\nHost: {SERVER_NAME}\nConnection: close\n", "200", "400", STRICT, host=False),
        line("bare CR", "GET /metrics HTTP/1.1\rX: 1", "400"),
        line("HTTP/1.0", "GET /metrics HTTP/1.0", "200"),
        line("HTTP/1.0 without Host", "GET /metrics HTTP/1.0\r\n", "200", "400", "Apache asks for a Host where TLS named a server", host=False),
        line("HTTP/0.9", "GET /metrics", "not HTTP/1", host=False),
        line("HTTP/1.2", "GET /metrics HTTP/1.2", "404"),
        line("HTTP/2.0", "GET /metrics HTTP/2.0", "505", "404", PARSER),
        line("HTTP/3", "GET /metrics HTTP/3", "505", "400", PARSER),
        line("a version in small letters", "GET /metrics http/1.1", "400"),
        line("HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n", "400", host=False),
        line("no HTTP at all", "\x00\x01\x02", "400", host=False),
        line("a method in small letters", "get /metrics HTTP/1.1", "400", "405", PARSER),
        line("a line of 9,000 bytes", "GET /" + "x" * 9000 + " HTTP/1.1", "414"),
    ]


def _methods() -> list[Case]:
    def method(name: str, answer: str = "405", *lines: str, **more: Any) -> Case:
        shown = ", ".join([name, *lines])
        return Case("Methods", shown, request("/metrics", *lines, method=name), answer, **more)

    return [
        method("HEAD", "200"),
        method("HEAD", "200", "User-Agent: want=large"),
        *map(method, ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "PURGE", "GETX")),
        method("TRACE"),
        method("TRACE", "405", "Max-Forwards: 0"),
        Case("Methods", "CONNECT", request("/metrics", method="CONNECT"), "405", "400", PARSER),
        method("GET", "200", "X-HTTP-Method-Override: DELETE"),
    ]


def _bodies() -> list[Case]:
    chunks = "1\r\na\r\n0\r\n\r\n"
    smuggled = "GET /admin HTTP/1.1\r\nHost: x\r\n\r\n"

    def body(name: str, *lines: str, body: str = "", answers: tuple[str, ...] = ("400",), **more: Any) -> Case:
        return Case("Bodies", name, request("/metrics", *lines, body=body), *answers, **more)

    return [
        body("a length of 0", "Content-Length: 0", answers=("200",)),
        body("a length", "Content-Length: 5", body="hello"),
        body("a length and nothing", "Content-Length: 5"),
        body("a length and more", "Content-Length: 5", body="hello" + smuggled),
        body("two lengths", "Content-Length: 0", "Content-Length: 5", body="hello"),
        body("a list of lengths", "Content-Length: 0, 5", body="hello"),
        body("a negative length", "Content-Length: -1"),
        body("a length with a sign", "Content-Length: +5", body="hello"),
        body("a hexadecimal length", "Content-Length: 0x5", body="hello"),
        body("an empty length", "Content-Length:"),
        body("a length too long", "Content-Length: 99999999999999999999"),
        body("a length of 10 GB", "Content-Length: 10000000000", answers=("400",)),
        body("chunks", "Transfer-Encoding: chunked", body=chunks),
        body("no chunks", "Transfer-Encoding: chunked", body="0\r\n\r\n"),
        body("chunks and trailers", "Transfer-Encoding: chunked", "Trailer: X", body="0\r\nAuthorization: x\r\n\r\n"),
        body("a chunk extension", "Transfer-Encoding: chunked", body="1;a=b\r\na\r\n0\r\n\r\n"),
        body("malformed chunks", "Transfer-Encoding: chunked", body="zz\r\n"),
        body("chunks and a length", "Transfer-Encoding: chunked", "Content-Length: 5", body="0\r\n\r\n" + smuggled),
        body("chunks and a length of 0", "Content-Length: 0", "Transfer-Encoding: chunked", body=chunks),
        body("chunks in other words", "Transfer-Encoding: xchunked", body=chunks, answers=("501", "400", RULE)),
        body("chunks twice", "Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=chunks),
        body("chunks after identity", "Transfer-Encoding: identity, chunked", body=chunks, answers=("501", "400", RULE)),
        body("chunks and a space before the colon", "Transfer-Encoding : chunked", body=chunks),
        body("chunks with an underscore", "Transfer_Encoding: chunked", answers=("200",)),
        body("Expect: 100-continue", "Expect: 100-continue", answers=("200",)),
        body("Expect: 100-continue with a body", "Expect: 100-continue", "Content-Length: 5", body="hello"),
        body("another Expect", "Expect: more", answers=("417",)),
        Case("Bodies", "a POST with a second request in its body",
            request("/metrics", f"Content-Length: {len(smuggled)}", method="POST", body=smuggled), "405"),
        Case("Bodies", "a second request in the same bytes",
            request().replace(b"Connection: close\r\n", b"") + request("/admin"), "200, 404"),
    ]


def _headers() -> list[Case]:
    def header(name: str, *lines: str, answers: tuple[str, ...] = ("200",)) -> Case:
        return Case("Headers", name, request("/metrics", *lines), *answers)

    long = "x" * 9000
    refused = ("400",)
    return [
        header("an Authorization of its own", "Authorization: Bearer client"),
        header("an Authorization twice", "Authorization: Bearer a", "Authorization: Bearer b", answers=("400", "200", "dropped by Apache, malformed for nginx")),
        header("Cookie", "Cookie: sid=1"),
        header("X-Remote-User", "X-Remote-User: root"),
        header("X-Forwarded-For and others", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: http", "Forwarded: for=1", "X-Real-IP: 1", "Via: 1.1 x"),
        header("X-Original-URL", "X-Original-URL: /admin", "X-Rewrite-URL: /admin"),
        header("`Connection: Authorization`", "Connection: Authorization"),
        header("`Connection: X-Forwarded-For, Host`", "Connection: X-Forwarded-For, Host, Accept"),
        header("Keep-Alive, TE, Trailer, Proxy-Authorization", "Keep-Alive: 1", "TE: trailers", "Trailer: X", "Proxy-Authorization: Basic eA==", "Proxy-Connection: keep-alive"),
        header("an upgrade to h2c", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", answers=refused),
        header("an upgrade to a WebSocket", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13", answers=refused),
        header("Range", "Range: bytes=0-3", "If-Range: x"),
        header("conditions", "If-None-Match: *", "If-Modified-Since: Tue, 24 Nov 2026 13:00:00 GMT", "If-Match: x"),
        header("Proxy", "Proxy: http://evil"),
        header("an underscore", "X_Forwarded_For: 10.0.0.1", "Authorization_: x"),
        header("a dot in the name", "X.Forwarded.For: 10.0.0.1"),
        header("User-Agent twice", "User-Agent: a", "User-Agent: b"),
        header("Accept twice", "Accept: text/plain", "Accept: text/html"),
        header("a value with a byte above 127", "User-Agent: \xe9"),
        header("a folded value", "Accept: a", " Authorization: Bearer x", answers=("400", "200", "Apache unfolds it, as HTTP allows: it stays one value")),
        header("a bare CR", "Accept: a\rAuthorization: Bearer x", answers=refused),
        header("a bare LF", "Accept: a\nX-Remote-User: root", answers=("200", "400", STRICT)),
        header("a NUL", "Accept: a\0b", answers=refused),
        header("a control character", "Accept: a\x01b", answers=refused),
        header("no colon", "Accept", answers=("200", "400", "dropped by nginx")),
        header("an empty name", ": a", answers=refused),
        header("a space before the colon", "Authorization : Bearer x", answers=refused),
        header("a space in the name", "X Y: 1", answers=refused),
        header("a header of 9,000 bytes", f"Accept: {long}", answers=refused),
        header("200 headers", *(f"X-{n}: 1" for n in range(200)), answers=("200", "400", "nginx limits bytes, Apache lines")),
        header("5 headers of 8,000 bytes", *(f"X-{n}: {'x' * 8000}" for n in range(5)), answers=("400", "200", "nginx limits bytes, Apache lines")),
        Case("Headers", "another Host", request(host="other.example"), "200"),
        Case("Headers", "an address as Host", request(host=f"{CLIENT}:9446"), "200"),
        Case("Headers", "no Host", request(host=None), "400"),
        Case("Headers", "Host twice", request("/metrics", "Host: other"), "400"),
        Case("Headers", "an empty Host", request(host=""), "400"),
        Case("Headers", "a malformed Host", request(host="a/b"), "400"),
    ]  # fmt: skip


def _connections() -> list[Case]:
    def connection(name: str, answer: str, send: Send = b"", slow: bool = False, by_hand: str = "", **connect: Any) -> Case:
        return Case("Connections", name, send or request(), answer, connect=connect, slow=slow, by_hand=by_hand)

    versions = ssl.TLSVersion
    return [
        connection("a source address that is not listed", "403", source="127.0.0.2"),
        connection("the own document from there", "403", request("/metrics/proxy"), by_hand="404", source="127.0.0.2"),
        connection("any path from there", "404", request("/x"), source="127.0.0.2"),
        connection("plain HTTP", "400", tls=None),
        connection("TLS 1.0", "no handshake", tls=context(versions.TLSv1)),
        connection("TLS 1.1", "no handshake", tls=context(versions.TLSv1_1)),
        connection("TLS 1.2", "200", tls=context(versions.TLSv1_2)),
        connection("TLS 1.3", "200", tls=context(versions.TLSv1_3)),
        connection("no server name", "200", server_name=None),
        connection("another server name", "200", server_name="other.example"),
        connection("another server name than Host", "200", request(host="a.example"), server_name="b.example"),
        connection("no handshake within 10 s", "closed", b"\x16\x03\x01", tls=None, patience=15, slow=True),
        connection("no request within 10 s", "closed", slowly(b""), patience=15, slow=True),
        connection("a header, a byte a second", "closed", slowly(request()[:15]), slow=True),
    ]


def _api() -> list[Case]:
    def api(name: str, want: str, *answers: str, **more: Any) -> Case:
        return Case("Answers of the API", name, wants(want), *answers, reaches=1, **more)

    def other(name: str, path: str, *answers: str, **more: Any) -> Case:
        return Case("Answers of the API", name, request(path), *answers, kinds=OURS, **more)

    patient: dict[str, Any] = {"connect": {"patience": 15}, "slow": True}
    return [
        api("a redirect to elsewhere", "redirect", "302"),
        api("X-Accel-Redirect and others", "accel", "200"),
        api("500", "error", "500"),
        api("401", "unauthorized", "401"),
        api("after 3 s", "slow", "200", **patient),
        api("none within 8 s", "hang", "504", "502", TIMEOUT, **patient),
        api("a reset", "reset", "502"),
        api("no HTTP", "garbage", "not HTTP/1", "200", "both take it for the body of an HTTP/0.9 answer"),
        api("less than announced", "half", "200 cut"),
        api("an upgrade that nobody asked for", "switch", "101", "502", "nginx passes it on; without `Upgrade` from the client it ends there"),
        api("a header of 100,000 bytes", "huge-header", "502"),
        api("50 MB", "large", "200", slow=True),
        Case("Answers of the API", "50 MB, read by nobody", wait_before_reading, "200 cut", slow=True),
        other("none: it is down", "/down", "502", "503", MOD_PROXY),
        other("none: its name is not known", "/absent", "502", "500", MOD_PROXY),
        other("https with the right CA", "/right-ca", "200"),
        other("https with another CA", "/wrong-ca", "502", "500", MOD_PROXY),
        other("https with a CA that the system does not know", "/system-ca", "502", "500", MOD_PROXY),
    ]


def _states() -> list[Case]:
    none = {"start": {"token": None}}
    return [
        Case("States", "no token: a document", request(), "503", **none),
        Case("States", "no token: another path", request("/x"), "404", "503", "Apache's include stands before the paths", **none),
        Case("States", "no token: the own document", request("/metrics/proxy"), "200", reaches=0, kinds=OURS, **none),
        Case("States", "no include", request(), "does not start", kinds=(*OURS, *BY_HAND), start={"include": False}),
    ]


CASES: Final = [
    *_paths(), *_request_lines(), *_methods(), *_bodies(), *_headers(), *_connections(), *_api(),
    *_states(),
]  # fmt: skip


def run(kind: str, cases: list[Case]) -> dict[Case, Outcome]:
    """Cases of the same `start`, one after the other."""
    try:
        proxy = Proxy(kind, **cases[0].start)
    except StartError:
        return {case: Outcome(Answer(b"", "does not start"), []) for case in cases}
    found = {}
    try:
        for case in cases:
            before = proxy.api.mark()
            answer = exchange(proxy.port, case.send, **case.connect)
            found[case] = Outcome(answer, proxy.api.received(before))
    finally:
        proxy.stop()
    return found


def run_all() -> dict[str, dict[Case, Outcome]]:
    """Every case at every kind of proxy. Those that take long have a proxy of their own."""
    batches: dict[str, list[Case]] = {}
    for number, case in enumerate(CASES):
        batches.setdefault(f"{case.start} {number if case.slow else ''}", []).append(case)
    jobs = [
        (kind, here)
        for batch in batches.values()
        for kind in KINDS
        if (here := [case for case in batch if kind in case.kinds])
    ]
    found: dict[str, dict[Case, Outcome]] = {kind: {} for kind in KINDS}
    with ThreadPoolExecutor(12) as pool:
        for (kind, _), outcomes in zip(jobs, pool.map(lambda job: run(*job), jobs), strict=True):
            found[kind] |= outcomes
    return found
