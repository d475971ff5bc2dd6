"""The corpus at a server, and what became of it."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from config.settings import HEALTH_PATH
from tests.behaviour.corpus import MARK, Request, corpus
from tests.behaviour.proxies import RENDERED, Proxy, unlimited
from tests.behaviour.upstream import CANARY, DOCUMENT, Received
from tests.behaviour.wire import BALANCER, CLIENT, SERVER_NAME, exchange
from tests.leaks import holds

THREADS: Final = 16
EVERY: Final = 50
"""A scrape that has to be answered comes after so many requests."""

HEALTH_EVERY: Final = 20
"""One in so many requests is sent for the health, too, by Prometheus and by the load balancer."""

SCRAPER: Final = b"Prometheus/3.0"
SCRAPES: Final = [
    f"GET {path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nUser-Agent: {SCRAPER.decode()}\r\n"
    "Accept: text/plain;version=0.0.4\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    for path in ("/metrics", "/metrics/workers")
]

LAST: Final = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""Sent behind every request on its connection: it makes the server close it, is the body of a
request that announces one, and shows a request that hides in another's body."""


@dataclass
class Result:
    """What became of the corpus at one server."""

    sent: int = 0
    scrapes: Counter[str] = field(default_factory=Counter)
    """Of the scrapes in between: answer → how many."""
    reached: list[Received] = field(default_factory=list)
    """Generated requests that reached the API, whole or in part."""
    healthy: Counter[str] = field(default_factory=Counter)
    """Who was told that the machine is healthy: source → how often."""
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
        if number % HEALTH_EVERY == 0 and kind in RENDERED:
            raw = raw.replace(b"/metrics", HEALTH_PATH.encode())
            for source in (CLIENT, BALANCER):
                name = request.server_name
                answer = exchange(
                    proxy.port, raw + LAST, source=source, server_name=name, patience=2
                )
                if holds(answer.data, CANARY):
                    result.leaks.append(request)
                result.healthy[source] += b"HTTP/1.1 204 " in answer.data
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
