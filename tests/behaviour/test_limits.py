"""What a client may take of a proxy, and that the proxy keeps its word about logs and disk."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox.processes import wait
from tests.behaviour.proxies import OURS, RENDERED, Proxy, put_in, unlimited
from tests.behaviour.table import request, wants
from tests.behaviour.upstream import CANARY, ECHOES
from tests.behaviour.wire import CLIENT, SERVER, context, exchange
from tests.leaks import holds

Start = Callable[..., Proxy]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start proxies that end with the test."""
    running: list[Proxy] = []

    def make(kind: str, edit: Callable[[str], str] = str, more: int = 0) -> Proxy:
        running.append(Proxy(kind, edit=edit, more=more))
        return running[-1]

    yield make
    for proxy in running:
        proxy.stop()


each = pytest.mark.parametrize("kind", RENDERED)
each_nginx = pytest.mark.parametrize("kind", [kind for kind in RENDERED if "nginx" in kind])


def serves_its_own(proxy: Proxy) -> bool:
    return str(exchange(proxy.port, request("/metrics/proxy"))) == "200"


@each_nginx
def test_more_requests_than_anybody_needs_are_refused(start: Start, kind: str) -> None:
    proxy = start(kind)
    scrape = request("/down").replace(b"Connection: close\r\n", b"")
    found = Counter[int]()
    for _ in range(3):  # nginx closes a connection after 1,000 requests
        answer = exchange(proxy.port, scrape * 999 + request("/down"))
        found.update(response.status for response in answer.responses)
    assert set(found) == {502, 429}
    assert found[502] > proxy.limits["burst"]
    assert serves_its_own(proxy)
    wait(lambda: str(exchange(proxy.port, request())) == "200", "the proxy to serve again", 10)


def hang(proxy: Proxy, *paths: str) -> list[threading.Thread]:
    """Have the API hang on each path; returns when all requests have reached it."""
    threads = []
    for path in paths:
        sent = proxy.port, request(path, "User-Agent: want=hang")
        threads.append(threading.Thread(target=exchange, args=sent, kwargs={"patience": 12}))
        threads[-1].start()
    wait(lambda: len(proxy.api.received()) == len(paths), "the API to be busy", 7)
    return threads


@each_nginx
def test_more_connections_than_anybody_needs_are_refused(start: Start, kind: str) -> None:
    proxy = start(kind)
    busy = hang(proxy, *["/metrics"] * proxy.limits["connections"])
    assert str(exchange(proxy.port, request())) == "429"
    assert serves_its_own(proxy)
    for thread in busy:
        thread.join()
    assert str(exchange(proxy.port, request())) == "200"


@each
def test_endpoints_that_hang_leave_the_others_their_place(start: Start, kind: str) -> None:
    """100 endpoints, 80 of which hang, for a pair of Prometheus behind one address."""
    proxy = start(kind, more=93)
    hang(proxy, *[f"/more-{number}" for number in range(80)] * 2)
    with ThreadPoolExecutor(40) as pool:
        answers = pool.map(lambda _: str(exchange(proxy.port, request())), range(40))
    assert Counter(answers) == {"200": 40}


def begin_handshake(proxy: Proxy) -> socket.socket:
    connection = socket.create_connection((SERVER, proxy.port), 10, (CLIENT, 0))
    connection.sendall(b"\x16\x03\x01")
    return connection


def begin_header(proxy: Proxy) -> socket.socket:
    plain = socket.create_connection((SERVER, proxy.port), 10, (CLIENT, 0))
    connection = context().wrap_socket(plain)
    connection.sendall(b"GET /metrics HT")
    return connection


@each
def test_connections_that_never_finish_leave_room_for_scrapes(start: Start, kind: str) -> None:
    """1,100 of them, each begun anew when the server has closed it."""
    proxy, ended, begun = start(kind), threading.Event(), []

    def hold(begin: Callable[[Proxy], socket.socket]) -> None:
        while not ended.is_set():
            begun.append(begin)
            with suppress(OSError), begin(proxy) as connection:
                connection.recv(1)

    for begin in [begin_handshake, begin_header] * 550:
        threading.Thread(target=hold, args=(begin,)).start()
    answers = Counter[str]()
    try:
        while len(begun) < 2 * 1100:
            answers[str(exchange(proxy.port, request(), patience=10))] += 1
            ended.wait(0.1)  # a rate that a Prometheus might have
    finally:
        ended.set()  # and when the proxy is stopped, they are closed
    assert answers.keys() == {"200"}


@each
def test_no_log_repeats_what_the_api_repeats(start: Start, kind: str) -> None:
    """Wherever in its answer the API says the token, and however malformed that is."""
    proxy = start(kind)
    for number in range(len(ECHOES)):
        exchange(proxy.port, wants(f"echo-{number}"))
    assert len(proxy.api.received()) == len(ECHOES)
    exchange(proxy.port, request("/the-last"))
    wait(lambda: b"/the-last" in proxy.said, "the log to be written", 5)
    assert not [line for line in proxy.said.splitlines() if holds(line, CANARY)]


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


@pytest.mark.parametrize("kind", [*RENDERED, "required nginx"])
def test_a_large_document_is_not_written_to_disk(start: Start, kind: str) -> None:
    proxy = start(kind)
    with (
        socket.create_connection((SERVER, proxy.port), source_address=(CLIENT, 0)) as plain,
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
    levels = {"stderr info": "stderr debug", "stderr crit": "stderr debug"}
    proxy = start("nginx", lambda text: put_in(text, levels))
    exchange(proxy.port, request())
    wait(lambda: holds(proxy.said, CANARY), "the token in the log", 5)


@pytest.mark.parametrize("word", ["headers.lua", "keep_listed"])
@pytest.mark.parametrize("kind", [kind for kind in RENDERED if "apache" in kind])
def test_without_its_header_list_apache_passes_nothing_on(
    start: Start, kind: str, word: str
) -> None:
    """No config test sees it: the script is read when a request comes."""
    proxy = start(kind, lambda text: put_in(text, {word: f"absent-{word}"}))
    assert str(exchange(proxy.port, request())) == "500"
    assert not proxy.api.received()
