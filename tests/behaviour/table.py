"""The cases: one row for every trap that a proxy in front of a token can walk into."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.behaviour.cases import Case, Send
from tests.behaviour.proxies import PROMISED, RENDERED
from tests.behaviour.wire import BALANCER, SERVER, SERVER_NAME, context

PARSER: Final = "one refuses it while parsing, the other by a rule"
LINE_FEED: Final = "nginx takes LF for a line end, Apache does not"
CODING: Final = "nginx says that it does not implement it"
LIMITS: Final = "nginx limits the bytes of all headers, Apache their number"
MOD_PROXY: Final = "mod_proxy's own status for it"

CHUNKS: Final = "1\r\na\r\n0\r\n\r\n"
SECOND: Final = "GET /admin HTTP/1.1\r\nHost: x\r\n\r\n"


def request(
    target: str = "/metrics",
    *lines: str,
    method: str = "GET",
    host: str | None = SERVER_NAME,
    body: str = "",
) -> bytes:
    """A request that closes its connection."""
    head = [f"{method} {target} HTTP/1.1", *([] if host is None else [f"Host: {host}"])]
    return ("\r\n".join([*head, *lines, "Connection: close", "", ""]) + body).encode("latin-1")


def line(text: str) -> bytes:
    """A request of any request line."""
    rest = f"\r\nHost: {SERVER_NAME}\r\nConnection: close\r\n\r\n"
    return (text + rest).encode("latin-1")


def headers(*lines: str) -> bytes:
    """A scrape with more headers."""
    return request("/metrics", *lines)


def body(text: str, *lines: str) -> bytes:
    """A scrape with a body."""
    return request("/metrics", *lines, body=text)


def wants(what: str) -> bytes:
    """A scrape that the API answers as told."""
    return headers(f"User-Agent: want={what}")


def slowly(text: bytes) -> Callable[[socket.socket], None]:
    """Send a byte a second."""

    def send(connection: socket.socket) -> None:
        for byte in text:
            connection.sendall(bytes([byte]))
            time.sleep(1)

    return send


def take_nothing(connection: socket.socket) -> None:
    """Ask for 50 MB, and read none for longer than a proxy of ours waits."""
    connection.sendall(wants("large"))
    time.sleep(14)


def rows(
    group: str,
    usual: str,
    sent: Mapping[str, Send],
    others: Mapping[str, tuple[str, ...]] | None = None,
    **more: Any,
) -> list[Case]:
    """Cases by name. `others` are the answers (nginx, Apache, why) that are not `usual`."""
    others = others or {}
    assert others.keys() <= sent.keys(), others.keys() - sent.keys()
    return [
        Case(group, name, send, *others.get(name, (usual,)), **more) for name, send in sent.items()
    ]


PATHS: Final = [
    *rows(
        "Paths",
        "200",
        {f"`{path}`": request(path) for path in ("/metrics", "/metrics/workers")},
    ),
    Case("Paths", "`/metrics/proxy`", request("/metrics/proxy"), "200", reaches=0, by_hand="404"),
    *rows(
        "Paths",
        "404",
        {
            f"`{path}`": request(path)
            for path in (
                *("/", "/admin", "/metricsfoo", "/metrics/users/1", "/metrics/"),
                *("//metrics", "/metrics//workers", "/METRICS"),
                *("/%6detrics", "/%256detrics", "/metrics%2fworkers", "/metrics%00"),
                *("/metrics%0d%0aX:1", "/metrics%c0%af", "/metrics\xe9"),
                *("/./metrics", "/x/../metrics", "/metrics/../admin", "/metrics/%2e%2e/admin"),
                *("/metrics;a=1", "/metrics/..;/admin", "/metrics\\..\\admin"),
                *("/metrics?all=1", "/metrics?", "/metrics#a"),
                *("/metrics/proxy/x", "/metrics/proxy?a", "/metrics/workers?a"),
            )
        },
        {
            "`/metrics%00`": ("400", "404", PARSER),
            "`/metrics#a`": ("404", "400", PARSER),
        },
    ),
]

REQUEST_LINES: Final = rows(
    "Request line",
    "400",
    {
        "an absolute URI": line(f"GET https://{SERVER_NAME}/metrics HTTP/1.1"),
        "an absolute URI of elsewhere": line("GET http://other:9/metrics HTTP/1.1"),
        "an authority": line("CONNECT api:9464 HTTP/1.1"),
        "an asterisk": line("OPTIONS * HTTP/1.1"),
        "no slash": line("GET metrics HTTP/1.1"),
        "two spaces": line("GET  /metrics HTTP/1.1"),
        "a space at the end": line("GET /metrics HTTP/1.1 "),
        "a tab": line("GET\t/metrics\tHTTP/1.1"),
        "a space in the path": line("GET /metrics x HTTP/1.1"),
        "a NUL": line("GET /metrics\0 HTTP/1.1"),
        "a vertical tab": line("GET /metrics\x0b HTTP/1.1"),
        "an empty line before": line("\r\nGET /metrics HTTP/1.1"),
        "line ends without CR": request().replace(b"\r", b""),
        "a CR without LF": line("GET /metrics HTTP/1.1\rX: 1"),
        "HTTP/1.0": line("GET /metrics HTTP/1.0"),
        "HTTP/1.0 without Host": b"GET /metrics HTTP/1.0\r\n\r\n",
        "HTTP/0.9": b"GET /metrics\r\n",
        "HTTP/1.2": line("GET /metrics HTTP/1.2"),
        "HTTP/2.0": line("GET /metrics HTTP/2.0"),
        "HTTP/3": line("GET /metrics HTTP/3"),
        "a version in small letters": line("GET /metrics http/1.1"),
        "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "no HTTP at all": b"\x00\x01\x02\r\n",
        "a method in small letters": line("get /metrics HTTP/1.1"),
        "9,000 bytes": line(f"GET /{'x' * 9000} HTTP/1.1"),
    },
    {
        "an absolute URI": ("404",),
        "an absolute URI of elsewhere": ("404",),
        "an authority": ("400", "405", PARSER),
        "an asterisk": ("400", "405", PARSER),
        "two spaces": ("404", "400", PARSER),
        "a space at the end": ("404", "400", PARSER),
        "an empty line before": ("200",),
        "line ends without CR": ("200", "400", LINE_FEED),
        "HTTP/1.0": ("200",),
        "HTTP/1.0 without Host": ("200", "400", "Apache wants one where TLS names a server"),
        "HTTP/0.9": ("not HTTP/1",),
        "HTTP/1.2": ("404",),
        "HTTP/2.0": ("505", "404", PARSER),
        "HTTP/3": ("505", "400", PARSER),
        "a method in small letters": ("400", "405", PARSER),
        "9,000 bytes": ("414",),
    },
)

METHOD_NAMES: Final = (
    *("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "PURGE"),
    "GETX",
)
METHODS: Final = [
    *rows(
        "Methods",
        "405",
        {method: request(method=method) for method in METHOD_NAMES},
        {"CONNECT": ("405", "400", PARSER)},
    ),
    *rows(
        "Methods",
        "200",
        {
            "HEAD": request(method="HEAD"),
            "HEAD of 50 MB": request("/metrics", "User-Agent: want=large", method="HEAD"),
            "TRACE with `Max-Forwards: 0`": request("/metrics", "Max-Forwards: 0", method="TRACE"),
            "GET with X-HTTP-Method-Override": headers("X-HTTP-Method-Override: DELETE"),
        },
        {"TRACE with `Max-Forwards: 0`": ("405",)},
    ),
]

BODIES: Final = rows(
    "Bodies",
    "400",
    {
        "a length of 0": body("", "Content-Length: 0"),
        "a length": body("hello", "Content-Length: 5"),
        "a length and nothing": body("", "Content-Length: 5"),
        "a length and more": body("hello" + SECOND, "Content-Length: 5"),
        "two lengths": body("hello", "Content-Length: 0", "Content-Length: 5"),
        "a list of lengths": body("hello", "Content-Length: 0, 5"),
        "a negative length": body("", "Content-Length: -1"),
        "a length with a sign": body("hello", "Content-Length: +5"),
        "a hexadecimal length": body("hello", "Content-Length: 0x5"),
        "an empty length": body("", "Content-Length:"),
        "a length of 20 digits": body("", "Content-Length: 99999999999999999999"),
        "a length of 10 GB": body("", "Content-Length: 10000000000"),
        "chunks": body(CHUNKS, "Transfer-Encoding: chunked"),
        "no chunks": body("0\r\n\r\n", "Transfer-Encoding: chunked"),
        "chunks and trailers": body(
            "0\r\nAuthorization: x\r\n\r\n", "Transfer-Encoding: chunked", "Trailer: X"
        ),
        "a chunk extension": body("1;a=b\r\na\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        "malformed chunks": body("zz\r\n", "Transfer-Encoding: chunked"),
        "chunks and a length": body(
            "0\r\n\r\n" + SECOND, "Transfer-Encoding: chunked", "Content-Length: 5"
        ),
        "chunks and a length of 0": body(CHUNKS, "Content-Length: 0", "Transfer-Encoding: chunked"),
        "another coding": body(CHUNKS, "Transfer-Encoding: xchunked"),
        "identity and chunks": body(CHUNKS, "Transfer-Encoding: identity, chunked"),
        "codings twice": body(CHUNKS, "Transfer-Encoding: chunked", "Transfer-Encoding: x"),
        "chunks, a space before the colon": body(CHUNKS, "Transfer-Encoding : chunked"),
        "chunks, an underscore": body("", "Transfer_Encoding: chunked"),
        "`Expect: 100-continue`": headers("Expect: 100-continue"),
        "`Expect: 100-continue` and a length": body(
            "hello", "Expect: 100-continue", "Content-Length: 5"
        ),
        "another Expect": headers("Expect: more"),
        "a second request as the body of a POST": request(
            "/metrics", f"Content-Length: {len(SECOND)}", method="POST", body=SECOND
        ),
        "a second request behind the first": request().replace(b"Connection: close\r\n", b"")
        + request("/admin"),
    },
    {
        "a length of 0": ("200",),
        "another coding": ("501", "400", CODING),
        "identity and chunks": ("501", "400", CODING),
        "chunks, an underscore": ("200",),
        "`Expect: 100-continue`": ("200",),
        "another Expect": ("417",),
        "a second request as the body of a POST": ("405",),
        "a second request behind the first": ("200, 404",),
    },
)

PROMETHEUS: Final = {
    "User-Agent": "Prometheus/3.7",
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4",
    "Accept-Encoding": "gzip",
    "X-Prometheus-Scrape-Timeout-Seconds": "10",
}
"""The headers of a scrape: they arrive as they are."""

SERVED_HEADERS: Final = rows(
    "Headers",
    "200",
    {
        "as Prometheus sends them": headers(*map(": ".join, PROMETHEUS.items())),
        "Authorization": headers("Authorization: Bearer client"),
        "Authorization twice": headers("Authorization: Bearer a", "Authorization: Bearer b"),
        "Cookie": headers("Cookie: sid=1"),
        "X-Remote-User": headers("X-Remote-User: root"),
        "X-Forwarded-For and its like": headers(
            *("X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: http", "Forwarded: for=10.0.0.1"),
            *("X-Real-IP: 10.0.0.1", "Via: 1.1 x"),
        ),
        "X-Original-URL and its like": headers("X-Original-URL: /admin", "X-Rewrite-URL: /admin"),
        "`Connection: Authorization`": headers("Connection: Authorization"),
        "`Connection: X-Forwarded-For, Host, Accept`": headers(
            "Connection: X-Forwarded-For, Host, Accept"
        ),
        "hop-by-hop headers": headers(
            *("Keep-Alive: 1", "TE: trailers", "Trailer: X", "Proxy-Connection: keep-alive"),
            "Proxy-Authorization: Basic eA==",
        ),
        "Range": headers("Range: bytes=0-3", "If-Range: x"),
        "conditions": headers("If-None-Match: *", "If-Match: x"),
        "Proxy": headers("Proxy: http://evil"),
        "an underscore": headers("X_Forwarded_For: 10.0.0.1", "Authorization_: x"),
        "a dot in the name": headers("X.Forwarded.For: 10.0.0.1"),
        "User-Agent twice": headers("User-Agent: a", "User-Agent: b"),
        "Accept twice": headers("Accept: text/plain", "Accept: text/html"),
        "a byte above 127": headers("User-Agent: \xe9"),
        "a folded value": headers("Accept: a", " Authorization: Bearer x"),
        "a line end without CR": headers("Accept: a\nX-Remote-User: root"),
        "no colon": headers("Accept"),
        "200 headers": headers(*(f"X-{n}: 1" for n in range(200))),
        "5 headers of 8,000 bytes": headers(*(f"X-{n}: {'x' * 8000}" for n in range(5))),
        "another Host": request(host="other.example"),
        "an address as Host": request(host=f"{SERVER}:9446"),
    },
    {
        "Authorization twice": ("400", "200", "malformed for nginx, taken away by Apache"),
        "a folded value": ("400", "200", "Apache unfolds it, and it stays one value"),
        "a line end without CR": ("200", "400", LINE_FEED),
        "no colon": ("200", "400", "nginx passes over the line"),
        "200 headers": ("200", "400", LIMITS),
        "5 headers of 8,000 bytes": ("400", "200", LIMITS),
    },
)

REFUSED_HEADERS: Final = rows(
    "Headers",
    "400",
    {
        "an upgrade to h2c": headers(
            "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"
        ),
        "an upgrade to a WebSocket": headers(
            *("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
            "Sec-WebSocket-Key: eA==",
        ),
        "an upgrade that the API agrees to": headers(
            "Connection: Upgrade", "Upgrade: h2c", "User-Agent: want=switch"
        ),
        "a CR without LF": headers("Accept: a\rAuthorization: Bearer x"),
        "a NUL": headers("Accept: a\0b"),
        "a control character": headers("Accept: a\x01b"),
        "an empty name": headers(": a"),
        "a space before the colon": headers("Authorization : Bearer x"),
        "a space in the name": headers("X Y: 1"),
        "a header of 9,000 bytes": headers(f"Accept: {'x' * 9000}"),
        "no Host": request(host=None),
        "Host twice": headers("Host: other"),
        "an empty Host": request(host=""),
        "a malformed Host": request(host="a/b"),
    },
)

NO_TOKEN: Final = {"token": None}

CONNECTIONS: Final = [
    Case("Connections", name, request(path), answer, connect=connect, by_hand=by_hand)
    for name, path, answer, by_hand, connect in (
        ("an address that is not listed", "/metrics", "403", "", {"source": "127.0.0.3"}),
        ("... and the own document", "/metrics/proxy", "403", "404", {"source": "127.0.0.3"}),
        ("... and another path", "/x", "404", "", {"source": "127.0.0.3"}),
        ("the machine's own", "/metrics", "200", "403", {"source": SERVER}),
        ("plain HTTP", "/metrics", "400", "", {"tls": None}),
        ("TLS 1.0", "/metrics", "no handshake", "", {"tls": context(ssl.TLSVersion.TLSv1)}),
        ("TLS 1.1", "/metrics", "no handshake", "", {"tls": context(ssl.TLSVersion.TLSv1_1)}),
        ("TLS 1.2", "/metrics", "200", "", {"tls": context(ssl.TLSVersion.TLSv1_2)}),
        ("TLS 1.3", "/metrics", "200", "", {"tls": context(ssl.TLSVersion.TLSv1_3)}),
        ("no server name", "/metrics", "200", "", {"server_name": None}),
        ("another server name than Host", "/metrics", "200", "", {"server_name": "b.example"}),
    )
]

FROM_BALANCER: Final[dict[str, Any]] = {
    "connect": {"source": BALANCER},
    "reaches": 0,
    "kinds": RENDERED,
}
CHECKER: Final = ("User-Agent: ELB-HealthChecker/2.0", "Accept-Encoding: gzip, compressed")
HEALTH: Final = [
    *rows(
        "Health",
        "404",
        {
            "the load balancer": request("/healthz", *CHECKER),
            "... with HEAD": request("/healthz", method="HEAD"),
            "... with POST": request("/healthz", method="POST"),
            "... with HTTP/1.0": line("GET /healthz HTTP/1.0"),
            "... with Authorization": request("/healthz", "Authorization: Bearer client"),
            "... with Range and conditions": request("/healthz", "Range: bytes=0-", "If-Match: x"),
            "... with a body": request("/healthz", "Content-Length: 5", body="hello"),
            **{
                f"... for `{path}`": request(path)
                for path in (
                    *("/healthz/", "/healthz/x", "/healthz?a", "/HEALTHZ", "//healthz"),
                    *("/%68ealthz", "/x/../healthz", "/healthz;a", "/healthz/../metrics"),
                )
            },
            "... for a document": request("/metrics"),
            "... for the own document": request("/metrics/proxy"),
            "... for a document, then": request("/healthz").replace(b"Connection: close\r\n", b"")
            + request("/metrics"),
        },
        {
            **dict.fromkeys(
                (
                    *("the load balancer", "... with HEAD", "... with HTTP/1.0"),
                    *("... with Authorization", "... with Range and conditions"),
                ),
                ("204",),
            ),
            "... with POST": ("405",),
            "... with a body": ("400",),
            "... for a document": ("403",),
            "... for the own document": ("403",),
            "... for a document, then": ("204, 403",),
        },
        **FROM_BALANCER,
    ),
    Case("Health", "Prometheus", request("/healthz"), "404"),
    *(
        Case("Health", name, request("/healthz"), "404", connect={"source": source})
        for name, source in (("another address", "127.0.0.3"), ("the machine itself", SERVER))
    ),
    Case(
        "Health",
        "no token: the load balancer",
        request("/healthz"),
        "503",
        start=NO_TOKEN,
        **FROM_BALANCER,
    ),
    Case(
        *("Health", "no token: Prometheus", request("/healthz"), "404", "503"),
        "Apache's 503 comes before its paths",
        start=NO_TOKEN,
    ),
]

SLOW_CLIENTS: Final = [
    Case(
        *("Slow clients", "no request within 5 s", slowly(b""), "closed"),
        connect={"patience": 8},
        slow=True,
    ),
    # given up before a timeout that starts anew with every byte would end it
    Case("Slow clients", "a header, a byte a second", slowly(request()[:10]), "closed", slow=True),
    Case(
        *("Slow clients", "no handshake within 5 s", b"\x16\x03\x01", "closed"),
        connect={"patience": 8, "tls": None},
        slow=True,
    ),
    Case("Slow clients", "50 MB, taking nothing", take_nothing, "200 cut", reaches=1, slow=True),
]

ANSWERS: Final = [
    *rows(
        "Answers of the API",
        "502",
        {
            "a redirect to elsewhere": wants("redirect"),
            "X-Accel-Redirect and its like": wants("accel"),
            "500": wants("error"),
            "401": wants("unauthorized"),
            "a reset": wants("reset"),
            "no HTTP": wants("garbage"),
            "less than announced": wants("half"),
            "an upgrade that nobody asked for": wants("switch"),
            "15 headers of 400 bytes": wants("long-headers"),
            "50 headers of 400 bytes": wants("more-headers"),
            "a header of 100,000 bytes": wants("huge-header"),
            "103 before the 200": wants("hints"),
            "no Content-Type": wants("no-type"),
        },
        {
            "15 headers of 400 bytes": ("200",),
            "50 headers of 400 bytes": (
                "502",
                "200",
                "nginx has 16 KB for all headers of an answer",
            ),
            "103 before the 200": ("103, 200",),
            "no Content-Type": ("200",),
            "a redirect to elsewhere": ("302",),
            "X-Accel-Redirect and its like": ("200",),
            "500": ("500",),
            "401": ("401",),
            "no HTTP": ("not HTTP/1", "200", "the body of an HTTP/0.9 answer for both"),
            "less than announced": ("200 cut",),
            "an upgrade that nobody asked for": ("101", "502", "nginx ends the connection then"),
        },
        reaches=1,
    ),
    *rows(
        "Answers of the API",
        "200",
        {
            "50 MB": wants("large"),
            "the document after 3 s": wants("slow"),
            "none within 8 s": wants("hang"),
        },
        {"none within 8 s": ("504", "502", MOD_PROXY)},
        reaches=1,
        connect={"patience": 15},
        slow=True,
    ),
    *rows(
        "Answers of the API",
        "502",
        {
            "none, it is down": request("/down"),
            "none, its name is not known": request("/absent"),
            "https, the endpoint's CA": request("/right-ca"),
            "https, another CA": request("/wrong-ca"),
            "https, a CA that the system does not know": request("/system-ca"),
        },
        {
            "none, it is down": ("502", "503", MOD_PROXY),
            "none, its name is not known": ("502", "500", MOD_PROXY),
            "https, the endpoint's CA": ("200",),
            "https, another CA": ("502", "500", MOD_PROXY),
            "https, a CA that the system does not know": ("502", "500", MOD_PROXY),
        },
        kinds=RENDERED,
    ),
]

STATES: Final = [
    Case("States", "no token: a document", request(), "503", start=NO_TOKEN),
    Case(
        *("States", "no token: another path", request("/x"), "404", "503"),
        "Apache's 503 comes before its paths",
        start=NO_TOKEN,
    ),
    Case(
        *("States", "no token: the own document", request("/metrics/proxy"), "200"),
        reaches=0,
        kinds=RENDERED,
        start=NO_TOKEN,
    ),
    Case(
        *("States", "no file with the token", request(), "does not start"),
        kinds=PROMISED,
        start={"include": False},
    ),
]

CASES: Final = [
    *(*PATHS, *REQUEST_LINES, *METHODS, *BODIES, *SERVED_HEADERS, *REFUSED_HEADERS),
    *(*CONNECTIONS, *HEALTH, *SLOW_CLIENTS, *ANSWERS, *STATES),
]
