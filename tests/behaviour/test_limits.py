"""What a client may take of a proxy, and that the proxy keeps its word about logs and disk."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host.proxy import LIMITS
from sandbox.processes import wait
from tests.behaviour.proxies import OURS, Proxy, put_in, unlimited
from tests.behaviour.table import request, wants
from tests.behaviour.upstream import CANARY
from tests.behaviour.wire import CLIENT, context, exchange
from tests.leaks import holds

Start = Callable[..., Proxy]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start proxies that end with the test."""
    running: list[Proxy] = []

    def make(kind: str, edit: Callable[[str], str] = str) -> Proxy:
        running.append(Proxy(kind, edit=edit))
        return running[-1]

    yield make
    for proxy in running:
        proxy.stop()


def test_more_requests_than_anybody_needs_are_refused(start: Start) -> None:
    proxy = start("nginx")
    scrape = request("/metrics/proxy").replace(b"Connection: close\r\n", b"")
    found = Counter[int]()
    for _ in range(3):  # nginx closes a connection after 1,000 requests
        answer = exchange(proxy.port, scrape * (LIMITS["burst"] - 1) + request("/metrics/proxy"))
        found.update(response.status for response in answer.responses)
    assert set(found) == {200, 429}
    assert found[200] > LIMITS["burst"]
    wait(lambda: str(exchange(proxy.port, request())) == "200", "the proxy to serve again", 10)


def test_more_connections_than_anybody_needs_are_refused(start: Start) -> None:
    proxy = start("nginx")
    busy = [
        threading.Thread(target=exchange, args=(proxy.port, wants("hang")), kwargs={"patience": 12})
        for _ in range(LIMITS["connections"])
    ]
    for thread in busy:
        thread.start()
    wait(lambda: len(proxy.api.received()) == len(busy), "the API to be busy", 7)
    assert str(exchange(proxy.port, request())) == "429"
    for thread in busy:
        thread.join()
    assert str(exchange(proxy.port, request())) == "200"


def test_the_fuzz_runs_without_limits(start: Start) -> None:
    changed = []

    def edit(text: str) -> str:
        changed.append(unlimited(text) != text)
        return unlimited(text)

    for kind in OURS:
        start(kind, edit)
    assert changed == [True, False], "Apache has no limits per client"


def files_in_use(proxy: Proxy) -> set[str]:
    """Regular files below the proxy's folder that its processes have open, logs aside."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) != proxy.group:
                continue
            links = [str(link.readlink()) for link in (process / "fd").iterdir()]
        except OSError:  # it has ended
            continue
        found |= {link for link in links if link.startswith(str(proxy.folder))}
    return {name for name in found if not name.endswith(".log")}


@pytest.mark.parametrize("kind", [*OURS, "required nginx"])
def test_a_large_document_is_not_written_to_disk(start: Start, kind: str) -> None:
    proxy = start(kind)
    with (
        socket.create_connection((CLIENT, proxy.port)) as plain,
        context().wrap_socket(plain) as connection,
    ):
        connection.sendall(wants("large"))
        connection.recv(1)
        if kind == "required nginx":
            wait(lambda: files_in_use(proxy), "a temporary file", 5)
            return
        for _ in range(10):
            connection.recv(2**16)
            assert not files_in_use(proxy)


def test_the_search_of_the_logs_sees_the_token(start: Start) -> None:
    """At the one level that is never used, since it prints it."""
    proxy = start(
        "nginx", lambda text: put_in(text, {"error_log stderr info": "error_log stderr debug"})
    )
    exchange(proxy.port, request())
    wait(lambda: holds(proxy.said, CANARY), "the token in the log", 5)


@pytest.mark.parametrize("word", ["headers.lua", "keep_listed"])
def test_without_its_header_list_apache_passes_nothing_on(start: Start, word: str) -> None:
    """No config test sees it: the script is read when a request comes."""
    proxy = start("apache", lambda text: put_in(text, {word: f"absent-{word}"}))
    assert str(exchange(proxy.port, request())) == "500"
    assert not proxy.api.received()
