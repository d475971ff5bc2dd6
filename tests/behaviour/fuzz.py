"""Raw requests by hypothesis, the same ones for every server, and what became of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from tests.behaviour.proxies import Proxy, unlimited
from tests.behaviour.upstream import CANARY, DOCUMENT, Received
from tests.behaviour.wire import SERVER_NAME, exchange
from tests.leaks import holds

SEED: Final = 9446
"""Of all that is generated. Another one finds other requests."""

COUNT: Final = 10_000
KEPT: Final = Path(__file__).with_name("kept.jsonl")
"""Requests that once passed and should not have: sent before all others."""

THREADS: Final = 16
EVERY: Final = 50
"""A scrape that has to be answered comes after so many requests."""

MARK: Final = "fuzz/"
"""The User-Agent of every request, followed by its number."""

SCRAPER: Final = b"Prometheus/3.0"
SCRAPES: Final = [
    f"GET {path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nUser-Agent: {SCRAPER.decode()}\r\n"
    "Accept: text/plain;version=0.0.4\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    for path in ("/metrics", "/metrics/workers")
]

LAST: Final = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""Sent behind every request on its connection: it makes the server close it, is the body of a
request that announces one, and shows a request that hides in another's body."""


class Request(NamedTuple):
    """Bytes (as latin-1) and the TLS server name to send them under."""

    raw: str
    server_name: str | None = SERVER_NAME


# -- generation ------------------------------------------------------------------------------------


@st.composite
def mostly(
    draw: st.DrawFn, usual: st.SearchStrategy[str], odd: st.SearchStrategy[str], share: int
) -> str:
    """A usual text, and in `share` of 100 an odd one."""
    return draw(odd if draw(st.integers(0, 99)) < share else usual)


def words(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split(" "))


def joined(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map("".join)


BYTES: Final = st.characters(max_codepoint=255)
ANY: Final = st.text(BYTES, max_size=12)
TOKENS: Final = st.text(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ-_"), min_size=1, max_size=10)

METHODS: Final = st.one_of(
    words(
        "POST PUT PATCH DELETE OPTIONS TRACE TRACE TRACE TRACE TRACE CONNECT PROPFIND "
        "MOVE LOCK PURGE DEBUG TRACK SEARCH LINK QUERY PRI get Head GETS GE HEADGET"
    ),
    TOKENS,
    ANY,
)

PATHS: Final = ("/metrics", "/metrics/workers")
PIECES: Final = words(
    "/ // . .. ... metrics METRICS metric workers proxy admin users 1 ; ;a=1 ..; ? "
    "?a=1 ?token # #a & = % %% %2f %2F %5c \\ %2e %2e%2e %252e %00 \0 %0a %0d%0a "
    "%20 + %09 \t %3f %23 %3b %6d %4D %c0%af %c1%9c %ef%bc%8f %u002f \xe9 \xff * @ "
    ": :80 ~ | ^ { } [ ] < > \" ' `"
)


def _encoded(path: str, positions: set[int]) -> str:
    return "".join(f"%{ord(c):02x}" if n in positions else c for n, c in enumerate(path))


def _inserted(path: str, piece: str, position: int) -> str:
    return path[:position] + piece + path[position:]


TARGETS: Final = st.one_of(
    st.builds(_inserted, st.sampled_from(PATHS), PIECES, st.integers(0, 17)),
    st.builds(_encoded, st.sampled_from(PATHS), st.sets(st.integers(0, 15), max_size=3)),
    st.lists(PIECES, max_size=6).map("".join),
    st.builds("{}{}".format, st.sampled_from(PATHS), ANY),
    st.builds(
        "{}://{}{}".format,
        st.sampled_from(["http", "https", "HTTP", "ftp", "file", "h2c", ""]),
        st.sampled_from([SERVER_NAME, "api:9464", "127.0.0.1", "[::1]:80", "a@b", "", "x:99999"]),
        st.sampled_from([*PATHS, "", "/admin", "//metrics", "?a", "/metrics?x"]),
    ),
    st.sampled_from(["*", "metrics", "api:9464", "", "//api:9464/metrics", "/metrics/proxy"]),
    st.integers(1000, 9000).map(lambda n: "/metrics/" + "x" * n),
)

VERSIONS: Final = st.one_of(
    st.sampled_from(
        ["HTTP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/1.10", "HTTP/2.0", "HTTP/2", "HTTP/3",
         "http/1.1", "HTTP/01.1", "HTTP/1.1 ", "HTTP/1.1 HTTP/1.1", "HTTP/1,1", "HTTP/-1",
         "ICY/1.1", ""]
    ),
    ANY,
)  # fmt: skip

NAMES: Final = words(
    "Accept Accept-Encoding Accept-Language User-Agent "
    "X-Prometheus-Scrape-Timeout-Seconds Cookie Authorization Proxy-Authorization "
    "X-Remote-User Remote-User X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto "
    "X_Forwarded_For Forwarded X-Real-IP Via Connection Proxy-Connection "
    "Keep-Alive TE Trailer Upgrade HTTP2-Settings Range If-Range If-None-Match "
    "If-Modified-Since Expect Origin Referer X-Original-URL X-Rewrite-URL "
    "X-HTTP-Method-Override X-Method-Override Max-Forwards Content-Type "
    "Content-Encoding Content-Range Early-Data Proxy Host Transfer_Encoding "
    "Content_Length Content-Length Transfer-Encoding Accept- X"
)
LISTED: Final = st.sampled_from(
    ["Accept", "Accept-Encoding", "User-Agent", "X-Prometheus-Scrape-Timeout-Seconds"]
)
VALUES: Final = st.one_of(
    words(
        "a 0 1 5 -1 gzip */* text/plain identity close keep-alive Upgrade TE,trailers "
        "chunked h2c websocket Authorization Authorization,close,Host Accept "
        "X-Forwarded-For 100-continue bytes=0-3 bytes=-1,0- 10.0.0.1 127.0.0.1 http "
        "https DELETE /admin trailers basic root Bearer%20x 15s 10"
    ),
    st.just(f"{SERVER_NAME}"),
    st.just("Bearer client"),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    ANY,
)
COLONS: Final = mostly(
    st.just(": "), st.sampled_from([":", " : ", "\t:", ":\t", " :", "", ":\r\n ", ": \n"]), 10
)
LINE_ENDS: Final = mostly(
    st.just("\r\n"), st.sampled_from(["\n", "\r", "\r\r\n", "\n\r", "\0\r\n", ""]), 4
)
ODD_HEADERS: Final = st.one_of(
    *[joined(NAMES, COLONS, VALUES, LINE_ENDS)] * 3,
    joined(LISTED, st.just(": "), VALUES, LINE_ENDS),
    st.sampled_from(["Max-Forwards: 0\r\n", "Max-Forwards: 0\r\n", "Max-Forwards: 1\r\n"]),
    joined(ANY, COLONS, VALUES, LINE_ENDS),
    st.sampled_from([" folded\r\n", "\tfolded: x\r\n", "\r\n", ":\r\n", "no colon\r\n"]),
    st.integers(1, 9000).map(lambda n: f"X-Long: {'x' * n}\r\n"),
    st.integers(1, 120).map(lambda n: "X-Many: 1\r\n" * n),
)
HEADERS: Final = st.builds(
    "{}: {}\r\n".format,
    words(
        "Accept Accept-Encoding Accept-Language User-Agent Cookie X-Remote-User "
        "X-Forwarded-For Forwarded Via X_Forwarded_For Range If-None-Match Origin "
        "X-Original-URL Keep-Alive X-HTTP-Method-Override Upgrade TE Connection "
        "Proxy-Authorization X-Real-IP"
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
)
HOSTS: Final = mostly(
    st.just(f"Host: {SERVER_NAME}\r\n"),
    st.one_of(
        st.sampled_from(
            ["", "Host: \r\n", "Host: api:9464\r\n", "Host: 127.0.0.1\r\n", "Host: a/b\r\n",
             "Host: a, b\r\n", "Host: [::1]\r\n", "Host: a\r\nHost: b\r\n", "host: x@y\r\n"]
        ),
        ANY.map("Host: {}\r\n".format),
    ),
    12,
)  # fmt: skip

CHUNKS: Final = st.sampled_from(
    ["0\r\n\r\n", "1\r\na\r\n0\r\n\r\n", "1;a=b\r\na\r\n0\r\n\r\n", "0\r\nAuthorization: x\r\n\r\n",
     "0x1\r\na\r\n0\r\n\r\n", "-1\r\n", "fffffffffffffffff\r\n", "1\na\n0\n\n", "zz\r\n",
     "1\r\naa\r\n0\r\n\r\n"]
)  # fmt: skip
CODINGS: Final = st.sampled_from(
    ["chunked", "Chunked", " chunked", "chunked, identity", "identity, chunked", "identity",
     "xchunked", "chunked\x0b", "\tchunked", '"chunked"', "gzip, chunked", "chunked;q=1",
     "chunked, chunked", ""]
)  # fmt: skip
LENGTHS: Final = st.sampled_from(
    ["0", "00", "5", "+5", "-1", "0x5", "5, 5", "0, 5", "5 ", " 5", "5a", "", "99", "1e1", "5\0",
     "18446744073709551616", "99999999999999999999", "2147483648"]
)  # fmt: skip
CHUNKED: Final = CODINGS.map("Transfer-Encoding: {}\r\n".format)
LENGTH: Final = LENGTHS.map("Content-Length: {}\r\n".format)
SMUGGLED: Final = " /admin HTTP/1.1\r\nHost: x\r\n\r\n"
BODIES: Final = st.one_of(
    st.tuples(CHUNKED, CHUNKS),
    st.tuples(LENGTH, st.sampled_from(["", "hello", "hello, and more"])),
    st.tuples(joined(LENGTH, CHUNKED), CHUNKS),
    st.tuples(joined(CHUNKED, LENGTH), CHUNKS),
    st.tuples(joined(LENGTH, LENGTH), st.sampled_from(["", "hello"])),
    st.tuples(st.just(""), st.sampled_from([f"GET{SMUGGLED}", f"DELETE{SMUGGLED}"])),
    st.tuples(st.just(f"Content-Length: {len(SMUGGLED) + 4}\r\n"), st.just(f"POST{SMUGGLED}")),
    st.tuples(st.just(""), ANY),
)


METHOD: Final = mostly(st.sampled_from(["GET", "GET", "GET", "HEAD"]), METHODS, 18)
SPACE: Final = mostly(st.just(" "), st.sampled_from(["  ", "\t", "", "\x0b", " \r"]), 2)
BEFORE: Final = mostly(
    st.just(""), st.sampled_from(["\r\n", "\n", " ", "\0", "GET / HTTP/1.1\r\n"]), 3
)
LINE: Final = joined(
    *(BEFORE, METHOD, SPACE, mostly(st.sampled_from(PATHS), TARGETS, 35), SPACE),
    *(mostly(st.just("HTTP/1.1"), VERSIONS, 8), LINE_ENDS),
)
HEAD: Final = st.lists(mostly(HEADERS, ODD_HEADERS, 30), max_size=4).map("".join)
NO_BODY: Final = st.just(("", ""))
SERVER_NAMES: Final = st.sampled_from([*[SERVER_NAME] * 8, "other.example", None])


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Mostly a scrape, with something about it that is not."""
    about_body, body = draw(BODIES if draw(st.integers(0, 99)) < 25 else NO_BODY)
    head = [draw(LINE), draw(HOSTS), f"User-Agent: {MARK}\r\n", draw(HEAD), about_body]
    return Request("".join([*head, "\r\n", body]), draw(SERVER_NAMES))


@cache
def corpus() -> list[Request]:
    """The kept requests, and COUNT that are generated: the same ones in every run."""
    found = dict.fromkeys(Request(*json.loads(line)) for line in KEPT.read_text().splitlines())

    @seed(SEED)
    @settings(
        max_examples=COUNT,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests())
    def generate(request: Request) -> None:
        assume(request not in found)
        found[request] = None

    generate()
    return list(found)


def keep(request: Request) -> None:
    """Have a request sent in every later run."""
    lines = dict.fromkeys([*KEPT.read_text().splitlines(), json.dumps(request)])
    KEPT.write_text("".join(f"{line}\n" for line in lines))


# -- sending ---------------------------------------------------------------------------------------


@dataclass
class Result:
    """What became of the corpus at one server."""

    sent: int = 0
    scrapes: Counter[str] = field(default_factory=Counter)
    """Of the scrapes in between: answer → how many."""
    reached: list[Received] = field(default_factory=list)
    """Generated requests that reached the API, whole or in part."""
    leaks: list[Request] = field(default_factory=list)
    """Requests in whose answer the token was."""
    said: bytes = b""
    """All that the server logged."""

    def forbidden(self) -> Counter[str]:
        """Requests that should not have reached the API: what is wrong → how many; `any`."""
        found = Counter[str]()
        for request in self.reached:
            wrong = request.objections().keys() - {"own headers"}
            found.update([*wrong, *(["any"] if wrong else [])])
        return found


def run(kind: str) -> Result:
    """Send the corpus to a server without limits."""
    result = Result()
    proxy = Proxy(kind, edit=unlimited)

    def send(item: tuple[int, Request]) -> None:
        number, request = item
        raw = request.raw.replace(MARK, f"{MARK}{number}").encode("latin-1")
        answer = exchange(proxy.port, raw + LAST, server_name=request.server_name, patience=2)
        if holds(answer.data, CANARY):
            result.leaks.append(request)
        if number % EVERY == 0:
            scrape = exchange(proxy.port, SCRAPES[number // EVERY % 2].encode(), patience=10)
            whole = [response.body for response in scrape.responses] == [DOCUMENT]
            result.scrapes[f"{scrape}{'' if whole else ' without the document'}"] += 1

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            result.sent = sum(1 for _ in pool.map(send, enumerate(corpus())))
        result.said = proxy.said
        result.reached = [r for r in proxy.api.received() if SCRAPER not in r.raw]
    finally:
        proxy.stop()
    return result


def sender(received: Received) -> Request | None:
    """The request of the corpus that a received one was, unless it lost its mark."""
    found = re.search(rf"{MARK}(\d+)".encode(), received.raw)
    return corpus()[int(found[1])] if found else None
